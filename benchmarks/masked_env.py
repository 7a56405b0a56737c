"""An environment with action masks that costs nothing, so that masks and policy are what is measured."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_ppo_variants.masks import heads_of


def random_masks(heads: Sequence[int], n: int, rng: np.random.Generator, probability: float = 0.5) -> np.ndarray:
    """
    Random action masks, each with at least one action for each part.

    :param heads: the numbers of actions of the parts, as from ``heads_of``
    :param n: number of masks
    :param rng: random generator
    :param probability: of an action to be valid, but for the one that is
    :return: booleans of shape ``(n, sum(heads))``
    """
    found = rng.random((n, sum(heads)), dtype=np.float32) < probability
    found[np.arange(n)[:, None], np.cumsum(heads) - heads + rng.integers(heads, size=(n, len(heads)))] = True
    return found


class Free(gym.Env):
    """
    Random observations and masks that repeat, a reward of 1, and episodes of 200 steps.

    :param action_space: the action space
    """

    def __init__(self, action_space: spaces.Space) -> None:
        rng = np.random.default_rng(0)
        self.action_space = action_space
        self.observation_space = spaces.Box(-1, 1, (32,))
        self.observations = rng.uniform(-1, 1, (64, 32)).astype(np.float32)
        self.masks = random_masks(heads_of(action_space), 64, rng)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        self.steps = 0
        return self.observations[0], {}

    def action_masks(self) -> np.ndarray:
        """The mask of the coming step."""
        return self.masks[self.steps % 64]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Whatever the action, the next observation."""
        self.steps += 1
        return self.observations[self.steps % 64], 1.0, False, self.steps == 200, {}
