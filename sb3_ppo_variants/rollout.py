"""
The rollout of an update: SB3's rollout buffer as tensors, with pi_old's action distributions, and its advantages.

Where SB3's own code is done with less overhead, the numbers and random draws are the same bit for bit, and only for SB3's own
classes: a subclass may have changed what its methods mean, so its methods are called.
"""

import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, RolloutBufferSamples
from torch.utils import _pytree as pytree

from sb3_ppo_variants.evaluation import evaluation_mode, frozen_copy
from sb3_ppo_variants.inference import acts_by_known_distribution, closed_form_of_samples
from sb3_ppo_variants.kl import kl_from_parameters
from sb3_ppo_variants.stand_in import is_standard_buffer


class RolloutData(NamedTuple):
    """Samples of a rollout, each tensor of shape ``(n_samples, ...)``: SB3's ``RolloutBufferSamples`` and pi_old."""

    observations: PyTorchObs
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    # Those of pi_old(.|s), as in `kl.ClosedForm`; none if there is no closed form of its KL
    old_parameters: tuple[th.Tensor, ...]

    def select(self, index: th.Tensor) -> "RolloutData":
        """
        Some of the samples.

        :param index: which ones
        :return: those
        """
        observations: PyTorchObs
        if isinstance(self.observations, dict):
            observations = {key: tensor.index_select(0, index) for key, tensor in self.observations.items()}
        else:
            observations = self.observations.index_select(0, index)
        actions, *others = (tensor.index_select(0, index) for tensor in self[1:6])
        old_parameters = tuple(tensor.index_select(0, index) for tensor in self.old_parameters)
        return RolloutData(observations, actions, *others, old_parameters)  # type: ignore[call-arg, arg-type]


class Rollout:
    """
    The rollout that an update learns from, and pi_old.

    :param buffer: a full rollout buffer of any class
    :param policy: the policy. It is pi_old now, unless ``old_parameters`` say what has acted
    :param old_parameters: parameters of pi_old(.|s), each of shape ``(n_steps, n_envs, ...)``, if known from the rollout
    :param standardizes: whether its advantages are shifted and scaled to mean 0 and deviation 1
    :raises ValueError: if the buffer is not full
    """

    def __init__(
        self,
        buffer: RolloutBuffer,
        policy: ActorCriticPolicy,
        old_parameters: tuple[th.Tensor, ...] = (),
        standardizes: bool = False,
    ) -> None:
        self.buffer = buffer
        self.policy = policy
        self.data: RolloutData | None = None
        self.last_epoch: list[RolloutData] = []
        # Whether it is known by which distribution the policy acts: found before the first step, when it still is pi_old
        self.is_known: bool | None = None
        samples = whole_rollout(buffer) if is_standard_buffer(buffer) else None
        # With the population's deviation, as in the paper's authors' code
        self.moments = (float(buffer.advantages.mean()), float(buffer.advantages.std())) if standardizes else None
        if samples is not None:
            # In the order of the samples: one environment after the other
            old_parameters = tuple(parameters.transpose(0, 1).flatten(end_dim=1) for parameters in old_parameters)
            self.data = self._data(samples, None if old_parameters else policy, old_parameters)
            return
        try:
            self.old_policy: ActorCriticPolicy | None = frozen_copy(policy)
        # Whatever a custom class may raise: the KL is not known then
        except Exception:
            self.old_policy = None

    def epoch(self, batch_size: int) -> Iterator[RolloutData]:
        """
        One pass over the rollout in random order, drawn from NumPy's global generator as SB3 does.

        :param batch_size: the size of a minibatch; the last one may be smaller
        :return: the minibatches
        """
        if self.data is None:
            epoch: list[RolloutData] = []
            # If the update ends within the first one, its minibatches until then count: the list is filled below
            self.last_epoch = self.last_epoch or epoch
            for samples in self.buffer.get(batch_size):
                data = self._data(samples, self.old_policy)
                if data.old_parameters:
                    # A policy may change its input in place
                    epoch.append(data._replace(observations=pytree.tree_map(th.clone, data.observations)))
                yield data
            self.last_epoch = epoch
            return
        # Not slices of a permuted rollout: sums over memory that is not aligned may round differently
        for index in self.permutation().split(batch_size):
            yield self.data.select(index)

    def permutation(self) -> th.Tensor:
        """The random order of an epoch."""
        permutation = np.random.permutation(self.buffer.buffer_size * self.buffer.n_envs)
        return th.as_tensor(permutation, device=self.buffer.device)

    def mean_kl(self) -> float | None:
        """
        E[KL[pi_old(.|s), pi(.|s)]] in nats over the whole rollout, of the policies in evaluation mode: the d of section 4. A
        custom buffer may give more or other samples in each epoch: there it is that over the samples of the last whole one.

        :return: the mean, or ``None`` if no closed form is known
        """
        kl = []
        with evaluation_mode(self.policy):
            for samples in self.last_epoch if self.data is None else [self.data]:
                if samples.old_parameters:
                    form = closed_form_of_samples(self.policy, samples.observations, samples.actions)
                    kl.append(kl_from_parameters(samples.old_parameters, form))
        if not kl:
            return None
        # Not every device has float64
        return th.cat(kl).cpu().mean(dtype=th.float64).item()

    def _data(
        self, samples: RolloutBufferSamples, old_policy: ActorCriticPolicy | None, old_parameters: tuple[th.Tensor, ...] = ()
    ) -> RolloutData:
        """Samples of the buffer, with parameters of pi_old: those given, or those of a policy."""
        # By name: the samples of a custom buffer may be of another class
        actions, advantages = samples.actions, samples.advantages
        if isinstance(self.policy.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        if self.moments is not None:
            mean, deviation = self.moments
            advantages = (advantages - mean) / (deviation + 1e-8)
        if self.is_known is None:
            self.is_known = acts_by_known_distribution(self.policy, samples.observations, actions)
        if old_policy is not None and self.is_known:
            with evaluation_mode(old_policy), suppress(NotImplementedError):
                old_parameters = closed_form_of_samples(old_policy, samples.observations, actions).parameters
        old_values, old_log_prob, returns = samples.old_values, samples.old_log_prob, samples.returns
        return RolloutData(samples.observations, actions, old_values, old_log_prob, advantages, returns, old_parameters)


class KeptDistributions:
    """
    The distributions pi_old(.|s) of a rollout's steps, kept from the passes that chose its actions.

    :param parameters: as in ``kl.ClosedForm``, each of shape ``(n_steps, n_envs, ...)``; none if they are not known
    :param buffer: the full buffer of the rollout
    """

    def __init__(self, parameters: tuple[th.Tensor, ...], buffer: RolloutBuffer) -> None:
        self.parameters = parameters if is_standard_buffer(buffer) else ()
        self.checksum = _checksum(buffer) if self.parameters else ()

    def of(self, buffer: RolloutBuffer) -> tuple[th.Tensor, ...]:
        """
        The parameters, if they are those of the observations in a buffer: a callback may have changed these since, by
        normalising them, say, and pi_old has not seen what they are now.

        :param buffer: the buffer that is learned from
        :return: the parameters, or none
        """
        return self.parameters if self.parameters and is_standard_buffer(buffer) and _checksum(buffer) == self.checksum else ()


def _checksum(buffer: RolloutBuffer) -> tuple[Any, ...]:
    """Shape and checksum of each array of observations in one of SB3's own buffers."""
    observations = buffer.observations
    arrays = observations.values() if isinstance(observations, dict) else [observations]
    return tuple((array.shape, zlib.crc32(np.ascontiguousarray(array).data)) for array in arrays)


def whole_rollout(buffer: RolloutBuffer) -> RolloutBufferSamples:
    """
    All samples of one of SB3's own buffers as tensors on its device.

    :param buffer: a full buffer, which is left as its ``get`` leaves it
    :return: the samples, in the order that the indices of ``get`` refer to
    :raises ValueError: if the buffer is not full
    """
    if not buffer.full:
        raise ValueError(
            f"The rollout buffer must be full to learn from it, but holds {buffer.pos} of {buffer.buffer_size} steps"
        )
    if not buffer.generator_ready:
        for name in ("actions", "values", "log_probs", "advantages", "returns"):
            setattr(buffer, name, buffer.swap_and_flatten(getattr(buffer, name)))
        if isinstance(buffer, DictRolloutBuffer):
            for key, array in buffer.observations.items():
                buffer.observations[key] = buffer.swap_and_flatten(array)
        else:
            buffer.observations = buffer.swap_and_flatten(buffer.observations)
        buffer.generator_ready = True
    # Without copies where possible: the buffer makes new arrays before it is filled again
    to_torch = partial(buffer.to_torch, copy=False)
    observations: PyTorchObs
    if isinstance(buffer, DictRolloutBuffer):
        observations = {key: to_torch(array) for key, array in buffer.observations.items()}
    else:
        observations = to_torch(buffer.observations)
    arrays = (buffer.actions.astype(np.float32, copy=False), buffer.values, buffer.log_probs)
    actions, *others = map(to_torch, (*arrays, buffer.advantages, buffer.returns))
    return RolloutBufferSamples(observations, actions, *(tensor.flatten() for tensor in others))  # type: ignore[arg-type]


def compute_returns_and_advantage(buffer: RolloutBuffer, last_values: th.Tensor, dones: np.ndarray) -> None:
    """
    Truncated generalized advantage estimation, equations (11) and (12), as the buffer's method of the same name.

    :param buffer: a full buffer
    :param last_values: value of the last observation of each environment
    :param dones: whether the last step ended the episode of each environment
    """
    # Others are added up in a wider type
    is_float32 = {type(buffer.gamma), type(buffer.gae_lambda)} <= {int, float} and last_values.dtype == th.float32
    if not is_standard_buffer(buffer) or not is_float32:
        buffer.compute_returns_and_advantage(last_values=last_values, dones=dones)
        return
    # SB3's expressions over all steps at once, in its order of operations; only the recursion is left for the loop
    next_non_terminal = np.empty_like(buffer.values)
    next_non_terminal[:-1] = 1.0 - buffer.episode_starts[1:]
    next_non_terminal[-1] = 1.0 - dones.astype(np.float32)
    next_values = np.empty_like(buffer.values)
    next_values[:-1] = buffer.values[1:]
    next_values[-1] = last_values.cpu().numpy().flatten()
    deltas = buffer.rewards + buffer.gamma * next_values * next_non_terminal - buffer.values
    decays = buffer.gamma * buffer.gae_lambda * next_non_terminal
    advantage = np.zeros(buffer.n_envs, dtype=np.float32)
    for delta, decay, out in zip(deltas[::-1], decays[::-1], buffer.advantages[::-1], strict=True):
        advantage = np.add(delta, decay * advantage, out=out)
    buffer.returns = buffer.advantages + buffer.values
