"""The rollout of an update: run pi_old for T timesteps, estimate advantages, and give minibatches."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import PyTorchObs, RolloutBufferSamples
from stable_baselines3.common.vec_env import VecEnv
from torch.func import functional_call
from torch.utils import _pytree as pytree

from sb3_ppo_variants import checks
from sb3_ppo_variants.buffers import OWN_BUFFERS
from sb3_ppo_variants.kl import kl_from_parameters
from sb3_ppo_variants.lanes import lane
from sb3_ppo_variants.loss import Batch
from sb3_ppo_variants.optimizer import by_place
from sb3_ppo_variants.policies import Given, PolicyFunction, kind_of

# The KL that is only logged is that of every 8th state where evaluating pi_old on all would take some percent of the time
KL_STRIDE = 8


def collect_rollouts(
    self: Any, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
) -> bool:
    """
    Run pi_old in the environments for T steps, and estimate the advantages: the algorithm's method, of SB3's parameters.

    :return: False if the callback, which sees these local variables, ended the rollout early
    :raises NonFiniteEnvironmentError: (a ``ValueError``) if the environment returned NaN or infinity
    :raises NonFinitePolicyError: (a ``ValueError`` and ``FloatingPointError``) if the policy made them
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
    space = self.action_space
    is_box, is_discrete, is_squashed = (
        isinstance(space, spaces.Box),
        isinstance(space, spaces.Discrete),
        self.policy.squash_output,
    )
    masks = self._masks
    while n_steps < n_rollout_steps:
        if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
            self.policy.reset_noise(env.num_envs)
        action_masks = None if masks is None else masks.before_step(self._last_action_masks, self.num_timesteps)
        given = {} if action_masks is None else {"action_masks": action_masks}
        observations = policy.seen(self._last_obs)
        obs_tensor, actions, values, log_probs = policy.act(observations, given)
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
                terminal = policy.seen(infos[idx]["terminal_observation"])
                terminal_obs = self.policy.obs_to_tensor(terminal)[0]
                terminal_value = policy.value(terminal, terminal_obs)[0]
                rewards[idx] += self.gamma * terminal_value

        add(observations, actions, rewards, self._last_episode_starts, values, log_probs, **given)
        self._last_obs = new_obs
        self._last_episode_starts = dones

    values = policy.value(policy.seen(new_obs))
    checks.check_rewards(rollout_buffer)
    estimate = lane("advantages", rollout_buffer) or rollout_buffer.compute_returns_and_advantage
    estimate(last_values=values, dones=dones)
    callback.update_locals(locals())
    callback.on_rollout_end()
    return True


class Rollout:
    """
    The rollout that an update learns from, with pi_old's distributions: theta_old <- theta.

    :param buffer: a full rollout buffer of any class
    :param policy: the policy, which is pi_old now
    :param standardizes: whether the advantages are shifted and scaled to mean 0 and deviation 1 over the rollout
    :param needs_kl: whether the update needs the KL of all samples
    """

    def __init__(self, buffer: RolloutBuffer, policy: Any, standardizes: bool = False, needs_kl: bool = True) -> None:
        self.buffer = buffer
        self.kind = kind_of(policy)
        self.is_discrete = isinstance(policy.action_space, spaces.Discrete)
        # With the population's deviation, as in the code of the paper's authors
        self.moments = (float(buffer.advantages.mean()), float(buffer.advantages.std())) if standardizes else None
        # Observations, what else was given, and pi_old's parameters, by which the KL of the update is measured
        self.measured: list[tuple[PyTorchObs, Given, tuple[th.Tensor, ...]]] = []
        #: The whole rollout; ``None`` for a custom buffer, which may give other samples in each epoch
        self.data: Batch | None = None
        if type(buffer) not in OWN_BUFFERS:
            self.module = PolicyFunction(policy, self.kind.distributions)
            self.theta_old = {name: tensor.detach().clone() for name, tensor in by_place(self.module).items()}
            return
        data = self._batch(whole_rollout(buffer))
        stride = 1 if needs_kl else KL_STRIDE
        inputs = pytree.tree_map(lambda tensor: tensor[::stride], (data.observations, data.given))
        form = self.kind.distributions(*inputs)
        old_parameters = () if form is None else form.parameters
        self.measured = [(*inputs, old_parameters)]
        self.data = data._replace(old_parameters=old_parameters if stride == 1 else ())
        if self.kind.acts_otherwise(data):
            warnings.warn(
                "The log probabilities of the actions in the rollout are not those of policy.get_distribution(observations): "
                "predict, train/kl and a KL penalty go by that distribution.",
                stacklevel=4,
            )

    def epoch(self, batch_size: int) -> Iterator[Batch]:
        """One pass over the rollout in random order, drawn from NumPy's global generator as SB3 does."""
        if self.data is not None:
            # Not slices of a permuted rollout: sums over memory that is not aligned may round differently
            for index in self.permutation().split(batch_size):
                yield self.data.select(index)
            return
        epoch: list[Any] = []
        # If the update ends within the first epoch, its minibatches until then count: the list is filled below
        self.measured = self.measured or epoch
        for samples in self.buffer.get(batch_size):
            batch = self._batch(samples)
            old = functional_call(self.module, self.theta_old, (batch.observations, batch.given), tie_weights=False)
            old_parameters = () if old is None else old.parameters
            # A policy may change its input in place
            epoch.append((pytree.tree_map(th.clone, batch.observations), batch.given, old_parameters))
            yield batch._replace(old_parameters=old_parameters)
        self.measured = epoch

    def permutation(self) -> th.Tensor:
        """The random order of an epoch."""
        permutation = np.random.permutation(self.buffer.buffer_size * self.buffer.n_envs)
        return th.as_tensor(permutation, device=self.buffer.device)

    def mean_kl(self) -> float | None:
        """E[KL[pi_old, pi]], the d of section 4, in nats in evaluation mode; of a custom buffer, over the last whole epoch."""
        forms = [(old, self.kind.distributions(obs, given)) for obs, given, old in self.measured if old]
        kl = [kl_from_parameters(old, form) for old, form in forms if form is not None]
        # On the CPU, as not every device has float64
        return th.cat(kl).cpu().mean(dtype=th.float64).item() if kl else None

    def _batch(self, samples: RolloutBufferSamples) -> Batch:
        """Samples of the buffer, by name: those of a custom buffer may be of another class."""
        actions, advantages = samples.actions, samples.advantages
        if self.is_discrete:
            actions = actions.long().flatten()
        if self.moments is not None:
            advantages = (advantages - self.moments[0]) / (self.moments[1] + 1e-8)
        others = samples.old_values, samples.old_log_prob, advantages, samples.returns
        return Batch(samples.observations, actions, *others, (), self.kind.of_samples(samples))


def whole_rollout(buffer: RolloutBuffer) -> RolloutBufferSamples:
    """All samples of one of ``OWN_BUFFERS``, in the order that the permutations of its ``get`` refer to."""
    if not buffer.full:
        raise checks.ArgumentError(f"The rollout buffer must be full, but holds {buffer.pos} of {buffer.buffer_size} steps")
    if not buffer.generator_ready:
        names = ("observations", "actions", "values", "log_probs", "advantages", "returns", "action_masks")
        for name in (name for name in names if hasattr(buffer, name)):
            setattr(buffer, name, pytree.tree_map(buffer.swap_and_flatten, getattr(buffer, name)))
        buffer.generator_ready = True
    samples: RolloutBufferSamples = buffer._get_samples(slice(None))  # type: ignore[arg-type]
    return samples
