"""The rollout of an update: run pi_old for T timesteps, estimate advantages, and give minibatches."""

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv
from torch.func import functional_call
from torch.utils import _pytree as pytree

from sb3_ppo_variants import checks
from sb3_ppo_variants.buffers import OWN_BUFFERS, RECURRENT_BUFFERS, STATES
from sb3_ppo_variants.kl import kl_from_parameters
from sb3_ppo_variants.lanes import lane
from sb3_ppo_variants.loss import Batch
from sb3_ppo_variants.masks import features
from sb3_ppo_variants.optimizer import by_place
from sb3_ppo_variants.policies import NOTHING, FeedForward, Given, PolicyFunction

# Where evaluating pi_old on all states would take some percent of the time, a KL that is only logged takes every 8th state
KL_STRIDE = 8

# That is so with images, and with action distributions of more numbers than this
MANY_ACTIONS = 256


def collect_rollouts(
    self: Any, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
) -> bool:
    """
    Run pi_old in the environments for T steps, and estimate the advantages. The parameters are those of SB3's method.

    :return: False if the callback, which sees these local variables, ended the rollout early
    :raises NonFiniteEnvironmentError: (a ``ValueError``) if the environment returned NaN or infinity
    :raises NonFinitePolicyError: (a ``ValueError`` and ``FloatingPointError``) if the policy made NaN or infinity
    """
    self.policy.set_training_mode(False)
    n_steps = 0
    rollout_buffer.reset()
    if self.use_sde:
        self.policy.reset_noise(env.num_envs)
    callback.on_rollout_start()
    policy = self._acting(rollout_buffer)
    step = lane("env", env) or env.step
    add = lane("buffer", rollout_buffer, policy.fills_buffer) or rollout_buffer.add
    space, is_squashed = self.action_space, self.policy.squash_output
    is_box, is_discrete = isinstance(space, spaces.Box), isinstance(space, spaces.Discrete)
    masks, lstm_states = self._masks, self._last_lstm_states
    while n_steps < n_rollout_steps:
        if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
            self.policy.reset_noise(env.num_envs)
        action_masks = None if masks is None else masks.before_step(self._last_action_masks, self.num_timesteps)
        stored: dict[str, Any] = {} if action_masks is None else {"action_masks": action_masks}
        given = stored
        if lstm_states is not None:
            stored["lstm_states"] = lstm_states
            episode_starts = th.tensor(self._last_episode_starts, dtype=th.float32, device=self.device)
            given = {**stored, "episode_starts": episode_starts}
        observations = features(self.policy, self._last_obs)
        obs_tensor, actions, values, log_probs, lstm_states = policy.act(observations, given)
        clipped_actions = actions
        if is_box and is_squashed:
            clipped_actions = self.policy.unscale_action(actions)
        elif is_box:
            # Quicker than np.clip
            clipped_actions = np.minimum(np.maximum(actions, space.low), space.high)

        new_obs, rewards, dones, infos = step(clipped_actions)
        self.num_timesteps += env.num_envs
        if masks is not None:
            self._last_action_masks = masks.after_step(new_obs, infos, dones)

        callback.update_locals(locals())
        if not callback.on_step():
            return False

        self._update_info_buffer(infos, dones)
        n_steps += 1
        if is_discrete:
            actions = actions.reshape(-1, 1)

        # A time limit has cut the episode off: V of the last observation stands for the rewards to come
        for idx, done in enumerate(dones):
            truncated = done and infos[idx].get("TimeLimit.truncated", False)
            if truncated and infos[idx].get("terminal_observation") is not None:
                terminal = features(self.policy, infos[idx]["terminal_observation"])
                terminal_obs = self.policy.obs_to_tensor(terminal)[0]
                memory = _memory(lstm_states, [False], slice(idx, idx + 1))
                terminal_value = policy.value(terminal, memory, terminal_obs)[0]
                rewards[idx] += self.gamma * terminal_value

        add(observations, actions, rewards, self._last_episode_starts, values, log_probs, **stored)
        self._last_obs = new_obs
        self._last_episode_starts = dones
        self._last_lstm_states = lstm_states

    values = policy.value(features(self.policy, new_obs), _memory(lstm_states, dones))
    checks.check_rewards(rollout_buffer)
    estimate = lane("advantages", rollout_buffer) or rollout_buffer.compute_returns_and_advantage
    estimate(last_values=values, dones=dones)
    callback.update_locals(locals())
    callback.on_rollout_end()
    return True


def _memory(lstm_states: Any, episode_starts: Any, envs: slice = slice(None)) -> Given:
    """What the critic of a policy with memory is given."""
    if lstm_states is None:
        return NOTHING
    states = tuple(state[:, envs].contiguous() for state in lstm_states.vf)
    return {"lstm_states": states, "episode_starts": th.tensor(episode_starts, dtype=th.float32, device=states[0].device)}


class Rollout:
    """
    The rollout that an update learns from, with pi_old's distributions: theta_old <- theta.

    :param buffer: a full rollout buffer of any class
    :param kind: the policy, which is pi_old now
    :param normalizes_rollout: whether the advantages are shifted and scaled to mean 0 and standard deviation 1 in the
        rollout
    :param needs_kl: whether the update needs the KL of all samples
    """

    def __init__(
        self, buffer: RolloutBuffer, kind: FeedForward, normalizes_rollout: bool = False, needs_kl: bool = True
    ) -> None:
        self.buffer, self.kind = buffer, kind
        policy: Any = kind.policy
        self.is_discrete = isinstance(policy.action_space, spaces.Discrete)
        # With the population's standard deviation, as in the code of the paper's authors
        self.moments = (float(buffer.advantages.mean()), float(buffer.advantages.std())) if normalizes_rollout else None
        # By which the KL of the update is measured: with pi_old's parameters
        self.measured: list[Batch] = []
        #: The whole rollout; ``None`` for a custom buffer, which may give other samples in each epoch
        self.data: Batch | None = None
        self.is_thinned = not needs_kl and "lstm_states" not in kind.takes
        if type(buffer) not in OWN_BUFFERS:
            self.module = PolicyFunction(policy, kind.distributions)
            self.theta_old = {name: tensor.detach().clone() for name, tensor in by_place(self.module).items()}
            return
        data = self._batch(whole_rollout(buffer))
        whole = _thinned(data) if self.is_thinned else kind.whole(data, buffer.buffer_size)
        form = kind.distributions(whole.observations, whole.given)
        old_parameters = () if form is None else form.parameters
        self.measured = [whole._replace(old_parameters=old_parameters)]
        self.data = data._replace(old_parameters=() if self.is_thinned else old_parameters)
        if form is not None and kind.acts_otherwise(whole):
            warnings.warn(
                "The log probabilities of the actions in the rollout are not those of policy.get_distribution(observations): "
                "predict, train/kl and a KL penalty go by that distribution.",
                stacklevel=4,
            )

    def minibatches(self, batch_size: int) -> Sequence[th.Tensor]:
        """Which samples are in the minibatches of an epoch."""
        return self.kind.minibatches(self.buffer.buffer_size, self.buffer.n_envs, batch_size)

    def epoch(self, batch_size: int) -> Iterator[Batch]:
        """One pass over the rollout in random order."""
        if self.data is not None:
            # Not slices of a permuted rollout: sums over memory that is not aligned may round differently
            for index in self.minibatches(batch_size):
                yield self.kind.select(self.data, index, self.buffer.buffer_size)
            return
        epoch: list[Batch] = []
        # If the update ends within the first epoch, its minibatches until then count: the list is filled below
        self.measured = self.measured or epoch
        for samples in self.buffer.get(batch_size):
            batch = self._batch(samples)
            measured = _thinned(batch) if self.is_thinned else batch
            old = functional_call(self.module, self.theta_old, (measured.observations, measured.given), tie_weights=False)
            measured = measured._replace(old_parameters=() if old is None else old.parameters)
            # A policy may change its input in place
            epoch.append(measured._replace(observations=pytree.tree_map(th.clone, measured.observations)))
            yield batch if self.is_thinned else measured
        self.measured = epoch

    def mean_kl(self) -> float | None:
        """E[KL[pi_old, pi]], d of section 4, in nats, in evaluation mode; with a custom buffer, over the last whole epoch."""
        kl: list[th.Tensor] = []
        for batch in self.measured:
            form = self.kind.distributions(batch.observations, batch.given) if batch.old_parameters else None
            if form is not None:
                found = kl_from_parameters(batch.old_parameters, form)
                kl.append(found if batch.valid is None else found[batch.valid])
        # On the CPU, as not every device has float64
        return th.cat(kl).cpu().mean(dtype=th.float64).item() if kl else None

    def _batch(self, samples: Any) -> Batch:
        """Samples of the buffer, by name: those of a custom buffer may be of another class."""
        actions, advantages = samples.actions, samples.advantages
        if self.is_discrete:
            actions = actions.long().flatten()
        if self.moments is not None:
            advantages = (advantages - self.moments[0]) / (self.moments[1] + 1e-8)
        others = samples.old_values, samples.old_log_prob, advantages, samples.returns
        mask = getattr(samples, "mask", None)
        valid = None if mask is None else mask > 0
        given = {name: getattr(samples, name) for name in self.kind.takes if hasattr(samples, name)}
        return Batch(samples.observations, actions, *others, (), given, valid)


def _thinned(batch: Batch) -> Batch:
    return batch.select(th.arange(0, len(batch.returns), KL_STRIDE, device=batch.returns.device))


# The arrays of rollout buffers that samples are made of
ARRAYS = ("observations", "actions", "values", "log_probs", "advantages", "returns", "action_masks")


def has_cheap_kl(observation_space: spaces.Space, action_space: spaces.Space) -> bool:
    """Whether evaluating pi_old on all states takes next to no time."""
    parts = observation_space.spaces.values() if isinstance(observation_space, spaces.Dict) else [observation_space]
    has_images = any(is_image_space(part, normalized_image=True) for part in parts)
    return not has_images and spaces.flatdim(action_space) <= MANY_ACTIONS


def whole_rollout(buffer: RolloutBuffer) -> Any:
    """All samples of one of ``OWN_BUFFERS``, in the order that the minibatches of its ``get`` refer to, named as those."""
    if not buffer.full:
        raise checks.ArgumentError(f"The rollout buffer must be full, but holds {buffer.pos} of {buffer.buffer_size} steps")
    is_recurrent = type(buffer) in RECURRENT_BUFFERS
    if not buffer.generator_ready:
        for name in STATES if is_recurrent else ():
            # The layers come before the environments
            setattr(buffer, name, getattr(buffer, name).swapaxes(1, 2))
        names = (*ARRAYS, *STATES, "episode_starts") if is_recurrent else ARRAYS
        for name in (name for name in names if hasattr(buffer, name)):
            setattr(buffer, name, pytree.tree_map(buffer.swap_and_flatten, getattr(buffer, name)))
        buffer.generator_ready = True
    to_torch = partial(buffer.to_torch, copy=False)
    # Nothing writes to a rollout while it is learned from
    without_copy: Any = SimpleNamespace(**vars(buffer), to_torch=to_torch)
    if not is_recurrent:
        return type(buffer)._get_samples(without_copy, slice(None))  # type: ignore[arg-type]
    # contrib's would be padded
    base: Any = DictRolloutBuffer if isinstance(buffer, DictRolloutBuffer) else RolloutBuffer
    samples = SimpleNamespace(**base._get_samples(without_copy, slice(None))._asdict())
    states = [to_torch(getattr(buffer, name)) for name in STATES]
    samples.lstm_states = RNNStates((states[0], states[1]), (states[2], states[3]))
    samples.episode_starts = to_torch(buffer.episode_starts).flatten()
    if hasattr(buffer, "action_masks"):
        samples.action_masks = to_torch(buffer.action_masks)
    return samples
