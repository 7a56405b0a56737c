"""The algorithm with contrib's kinds of policies: what it does otherwise with action masks, a memory or both."""

import importlib
import warnings
from typing import Any

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates

from sb3_ppo_variants import masks
from sb3_ppo_variants.buffers import buffer_for


def takes_masks(policy: Any) -> bool:
    """Whether a policy takes masks: its class, its name, or, as the RL Zoo has it, the path of its class."""
    if isinstance(policy, str) and "." in policy:
        module, _, name = policy.rpartition(".")
        policy = getattr(importlib.import_module(module), name)
    return masks.takes_masks(policy) if isinstance(policy, type) else str(policy).startswith("Maskable")


def is_masked(algorithm: Any) -> bool:
    """Whether the policy takes masks."""
    return masks.takes_masks(algorithm.policy_class)


def is_recurrent(algorithm: Any) -> bool:
    """Whether the policy has a memory."""
    return issubclass(algorithm.policy_class, RecurrentActorCriticPolicy)


def set_up(algorithm: Any) -> None:
    """Make policy and rollout buffer as contrib's ``MaskablePPO`` and ``RecurrentPPO``, but that a mask is no feature."""
    a, has_masks, has_memory = algorithm, is_masked(algorithm), is_recurrent(algorithm)
    a._setup_lr_schedule()
    a.set_random_seed(a.seed)
    is_whole = a._mask_is_feature or not has_masks
    space = a.observation_space if is_whole else masks.visible_space(a.policy_class, a.observation_space)
    policy_kwargs = {"use_sde": a.use_sde, **a.policy_kwargs} if has_memory else a.policy_kwargs
    a.policy = a.policy_class(space, a.action_space, a.lr_schedule, **policy_kwargs).to(a.device)
    options = {"device": a.device, "gamma": a.gamma, "gae_lambda": a.gae_lambda, "n_envs": a.n_envs, **a.rollout_buffer_kwargs}
    if has_memory:
        # As contrib, of the actor's size for the critic, too
        layers, size = a.policy.lstm_actor.num_layers, a.policy.lstm_actor.hidden_size
        states = [th.zeros((layers, a.n_envs, size), device=a.device) for _ in range(4)]
        a._last_lstm_states = RNNStates((states[0], states[1]), (states[2], states[3]))
        options["hidden_state_shape"] = (a.n_steps, layers, a.n_envs, size)
    a.rollout_buffer_class = buffer_for(a.rollout_buffer_class, space, has_masks, has_memory)
    a.rollout_buffer = a.rollout_buffer_class(a.n_steps, space, a.action_space, **options)


def find_masks(algorithm: Any, is_reset: bool) -> masks.Masks | None:
    """
    Where the masks come from in a training that begins; ``None`` for a policy that takes none. The algorithm keeps what is
    known of those of the first step, from before if the environment has not been reset.
    """
    a = algorithm
    if is_masked(a):
        found = masks.Masks(a.env)
        a._print(f"Action masks come from {found.source}")
        if is_reset or a._last_action_masks is None:
            a._last_action_masks = found.after_reset(a._last_obs)
        return found
    name = None if a._has_warned_of_masks else masks.name_for(a.policy_class, a.env)
    if name is not None:
        a._has_warned_of_masks = True
        warnings.warn(
            f"{a.policy_class.__name__} takes no action masks, but the environment gives some, as {masks.source_of(a.env)}: "
            f"the policy {name!r} would use them",
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
    The actions of the policy for observations: the algorithm's method.

    :param observation: one observation, or those of several environments
    :param state: what recurrent policies remember
    :param episode_start: where episodes start, for recurrent policies
    :param deterministic: whether to take the likeliest actions
    :param action_masks: which actions are possible, for a policy with action masks; if ``None``, what the observations have as
        ``action_mask``; without that, all are
    :return: the actions, and the next state
    :raises ValueError: if there are masks for a policy that takes none, more or fewer than observations, or such as leave no
        action
    """
    options = state, episode_start, deterministic
    if not is_masked(self):
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
    return self.policy.predict(features, *options, action_masks=found)
