"""The algorithm with a policy that takes action masks: what it does otherwise, as its methods or for them."""

import importlib
import warnings
from typing import Any

import numpy as np
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy

from sb3_ppo_variants import masks
from sb3_ppo_variants.buffers import masked_buffer


def takes_masks(policy: Any) -> bool:
    """Whether a policy takes masks: its class, its name, or, as the RL Zoo has it, the path of its class."""
    if isinstance(policy, str) and "." in policy:
        module, _, name = policy.rpartition(".")
        policy = getattr(importlib.import_module(module), name)
    return issubclass(policy, MaskableActorCriticPolicy) if isinstance(policy, type) else policy in masks.POLICIES


def is_masked(algorithm: Any) -> bool:
    """Whether the policy takes masks."""
    return takes_masks(algorithm.policy_class)


def set_up(algorithm: Any) -> None:
    """Make policy and rollout buffer as contrib's ``MaskablePPO``, but that the mask is no feature."""
    a = algorithm
    a._setup_lr_schedule()
    a.set_random_seed(a.seed)
    space = a.observation_space if a._mask_is_feature else masks.visible_space(a.policy_class, a.observation_space)
    a.policy = a.policy_class(space, a.action_space, a.lr_schedule, **a.policy_kwargs).to(a.device)
    a.rollout_buffer_class = masked_buffer(a.rollout_buffer_class, space)
    options = {"device": a.device, "gamma": a.gamma, "gae_lambda": a.gae_lambda, "n_envs": a.n_envs, **a.rollout_buffer_kwargs}
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
    :raises ValueError: if there are masks for a policy that takes none, or such as leave no action
    """
    options = state, episode_start, deterministic
    if not is_masked(self):
        if action_masks is not None:
            raise ValueError(f"action_masks must be None with {self.policy_class.__name__}, which takes none")
        return self.policy.predict(observation, *options)
    found = masks.given_or_found(action_masks, observation, self.action_space)
    return self.policy.predict(masks.features(self.policy, observation), *options, action_masks=found)
