"""SB3's rollouts with less overhead."""

from collections.abc import Callable

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_ppo_variants import checks
from sb3_ppo_variants.inference import ModulePolicy, RolloutPolicy, StackedPolicy
from sb3_ppo_variants.rollout import KeptDistributions, compute_returns_and_advantage
from sb3_ppo_variants.stand_in import is_plain, is_standard_mlp
from sb3_ppo_variants.vec_env import fast_step


class FastRolloutAlgorithm(OnPolicyAlgorithm):
    """
    SB3's ``OnPolicyAlgorithm`` with rollouts that take less time. They are bit for bit those of SB3, unless
    ``_uses_compiled`` says that they may round differently.
    """

    _uses_compiled: bool
    # Of the last rollout, until the update
    _kept: KeptDistributions | None

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Run pi_old in the environments for T steps: what SB3's method of this name does, with less overhead.

        :param env: the training environment
        :param callback: called at each step, and at the beginning and end of the rollout; it sees SB3's ``locals``
        :param rollout_buffer: buffer to fill
        :param n_rollout_steps: T, the number of steps per environment
        :return: False if the callback ended the rollout early
        :raises NonFiniteEnvironmentError: (a ``ValueError``) if the environment returned NaN or infinity
        """
        assert self._last_obs is not None, "No previous observation was provided"
        # Switch to eval mode (this affects batch norm and dropout)
        self.policy.set_training_mode(False)
        n_steps = 0
        rollout_buffer.reset()
        self._kept = None
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)
        callback.on_rollout_start()

        policy = self._rollout_policy(rollout_buffer)
        clip = self._clipper(env.num_envs)
        is_discrete = isinstance(self.action_space, spaces.Discrete)
        step = fast_step(env)
        add = _adder(rollout_buffer, has_values=isinstance(policy, StackedPolicy))
        while n_steps < n_rollout_steps:
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self.policy.reset_noise(env.num_envs)
            obs_tensor, actions, values, log_probs = policy(self._last_obs)  # type: ignore[arg-type]
            clipped_actions = clip(actions)

            new_obs, rewards, dones, infos = step(clipped_actions)
            self.num_timesteps += env.num_envs

            # Give access to local variables
            callback.update_locals(locals())
            if not callback.on_step():
                return False

            self._update_info_buffer(infos, dones)
            n_steps += 1
            if is_discrete:
                actions = actions.reshape(-1, 1)

            # A time limit has cut the episode off: as in SB3, V of the last observation stands for the rewards to come
            for idx, done in enumerate(dones):
                truncated = done and infos[idx].get("TimeLimit.truncated", False)
                if truncated and infos[idx].get("terminal_observation") is not None:
                    terminal_obs = self.policy.obs_to_tensor(infos[idx]["terminal_observation"])[0]
                    as_returned = infos[idx]["terminal_observation"]
                    terminal_value = ModulePolicy(self.policy).predict_values(as_returned, terminal_obs)[0]
                    rewards[idx] += self.gamma * terminal_value

            add(self._last_obs, actions, rewards, self._last_episode_starts, values, log_probs)
            self._last_obs = new_obs  # type: ignore[assignment]
            self._last_episode_starts = dones

        values = ModulePolicy(self.policy).predict_values(new_obs)  # type: ignore[arg-type]
        checks.check_rewards(rollout_buffer)
        compute_returns_and_advantage(rollout_buffer, values, dones)
        self._kept = KeptDistributions(policy.parameters(), rollout_buffer)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _rollout_policy(self, rollout_buffer: RolloutBuffer) -> StackedPolicy | RolloutPolicy | ModulePolicy:
        """The fastest way to pi_old's actions, values and log probabilities."""
        # On the compiled path only, as it rounds differently from SB3
        if self._uses_compiled and StackedPolicy.supports(self.policy):
            return StackedPolicy(self.policy, rollout_buffer)
        return RolloutPolicy(self.policy) if is_standard_mlp(self.policy) else ModulePolicy(self.policy)

    def _clipper(self, n_envs: int) -> Callable[[np.ndarray], np.ndarray]:
        """The function that makes of the actions of a policy those of the action space."""
        if not isinstance(self.action_space, spaces.Box):
            return lambda actions: actions
        if self.policy.squash_output:
            return self.policy.unscale_action
        # Minimum and maximum of equal shapes are faster than np.clip
        low, high = (np.repeat(bound[None], n_envs, axis=0) for bound in (self.action_space.low, self.action_space.high))
        return lambda actions: np.minimum(np.maximum(actions, low), high)


def _adder(buffer: RolloutBuffer, has_values: bool) -> Callable[..., None]:
    """
    The function that does what ``buffer.add`` does, and does it itself for a plain buffer of vectors, which may have got its
    values and log probabilities from a ``StackedPolicy`` already.
    """
    if not is_plain(buffer, RolloutBuffer) or len(buffer.obs_shape) != 1 or buffer.device.type != "cpu":
        return buffer.add
    observations, actions, rewards = buffer.observations, buffer.actions, buffer.rewards
    episode_starts, values, log_probs = buffer.episode_starts, buffer.values, buffer.log_probs
    obs_shape, action_shape = observations.shape[1:], actions.shape[1:]

    def add(
        obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: th.Tensor,
        log_prob: th.Tensor,
    ) -> None:
        pos = buffer.pos
        observations[pos] = obs.reshape(obs_shape)
        actions[pos] = action.reshape(action_shape)
        rewards[pos] = reward
        episode_starts[pos] = episode_start
        if not has_values:
            values[pos] = value.numpy().ravel()
            log_probs[pos] = log_prob.numpy()
        buffer.pos = pos + 1
        buffer.full = buffer.pos == buffer.buffer_size

    return add
