"""The algorithm with contrib's kinds of policies: what it does otherwise with action masks, a memory or both."""

import warnings
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates

from sb3_ppo_variants import masks, recurrent_policies
from sb3_ppo_variants.buffers import buffer_for


def set_up(algorithm: Any) -> None:
    """Make policy and rollout buffer as contrib's ``MaskablePPO`` and ``RecurrentPPO``, but that a mask is no feature."""
    a, cls = algorithm, algorithm.policy_class
    has_masks, has_memory = recurrent_policies.takes_masks(cls), issubclass(cls, RecurrentActorCriticPolicy)
    a._setup_lr_schedule()
    a.set_random_seed(a.seed)
    is_whole = a._mask_is_feature or not has_masks
    space = a.observation_space if is_whole else masks.visible_space(cls, a.observation_space)
    policy_kwargs = {"use_sde": a.use_sde, **a.policy_kwargs} if has_memory else a.policy_kwargs
    a.policy = cls(space, a.action_space, a.lr_schedule, **policy_kwargs).to(a.device)
    options = {"device": a.device, "gamma": a.gamma, "gae_lambda": a.gae_lambda, "n_envs": a.n_envs, **a.rollout_buffer_kwargs}
    if has_memory:
        # As contrib, of the actor's size for the critic, too
        layers, size = a.policy.lstm_actor.num_layers, a.policy.lstm_actor.hidden_size
        zeros = th.zeros((layers, a.n_envs, size), device=a.device)
        a._last_lstm_states = RNNStates((zeros, zeros), (zeros, zeros))
        options["hidden_state_shape"] = (a.n_steps, layers, a.n_envs, size)
    a.rollout_buffer_class = buffer_for(a.rollout_buffer_class, space, has_masks, has_memory)
    a.rollout_buffer = a.rollout_buffer_class(a.n_steps, space, a.action_space, **options)


def find_masks(algorithm: Any, is_reset: bool) -> masks.Masks | None:
    """
    Where the masks come from, as a training begins; ``None`` for a policy that takes none. The algorithm keeps what is known
    of the masks of the first step; if the environment has not been reset, it keeps what it has.
    """
    a = algorithm
    if recurrent_policies.takes_masks(a.policy_class):
        found = masks.Masks(a.env)
        a._print(f"Action masks come from {found.source}")
        if is_reset or a._last_action_masks is None:
            a._last_action_masks = found.after_reset(a._last_obs)
        return found
    can_have_masks = isinstance(a.action_space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary)
    source = masks.source_of(a.env) if is_reset and can_have_masks else None
    if source is not None:
        warnings.warn(
            f"{a.policy_class.__name__} takes no action masks, but the environment gives some, as {source}: "
            f"the policy {masks.name_for(a.policy_class)!r} would use them",
            stacklevel=5,
        )
    return None


def predict(
    self: Any,
    observation: np.ndarray | dict[str, np.ndarray],
    state: tuple[np.ndarray, ...] | None = None,
    episode_start: np.ndarray | None = None,
    deterministic: bool = False,
    action_masks: np.ndarray | None = None,
) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
    """
    The policy's actions for observations.

    :param observation: one observation, or those of several environments
    :param state: for policies with memory, the state that the last call returned; ``None`` at the beginning of episodes
    :param episode_start: for policies with memory, where episodes begin
    :param deterministic: whether to take the likeliest actions
    :param action_masks: which actions are possible, for a policy that takes masks. ``None``: the ``action_mask`` of the
        observations; if they have none, all actions are possible, with a warning if the training has masks
    :return: the actions, and the next state
    :raises ValueError: if masks are given to a policy that takes none, if their number is not that of the observations, or if
        a mask leaves no action
    """
    options = state, episode_start, deterministic
    if not recurrent_policies.takes_masks(self.policy_class):
        if action_masks is not None:
            raise ValueError(f"action_masks must be None with {self.policy_class.__name__}, which takes none")
        return self.policy.predict(observation, *options)
    found = masks.given_or_found(action_masks, observation, self.action_space)
    features = masks.features(self.policy, observation)
    if found is not None:
        array = next(iter(features.values())) if isinstance(features, dict) else features
        n = len(array) if self.policy.is_vectorized_observation(features) else 1
        if len(found) != n:
            raise ValueError(f"action_masks must be one for each observation, but there are {len(found)} for {n}")
    elif self._masks is not None:
        how = "give it action_masks, or attach them to the observations by sb3_ppo_variants.masks.attach_masks(env)"
        warnings.warn(f"predict gets no action masks, but the training has some, as {self._masks.source}: {how}", stacklevel=2)
    return self.policy.predict(features, *options, action_masks=found)
