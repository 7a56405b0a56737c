"""
Tasks that cannot be solved without memory: Recall-v0 and, with action masks, MaskedRecall-v0. Importing this module registers
them with Gymnasium.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

N_CUES = 3


class Recall(gym.Env):
    """
    The first observation of an episode shows one of three cues, three to five blank ones follow, and the last one says "now":
    the action there ends the episode, and pays 1 if it is the cue. A return is 1 or 0; by chance, it is 1/3 on average.
    """

    # One-hot the cue, then "now"
    observation_space = spaces.Box(0, 1, (N_CUES + 1,))
    action_space = spaces.Discrete(N_CUES)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self.cue = int(self.np_random.integers(N_CUES))
        self.blanks = int(self.np_random.integers(3, 6))
        return np.eye(N_CUES + 1, dtype=np.float32)[self.cue], {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Whatever the action, the next observation; but the last one counts."""
        self.blanks -= 1
        ended = self.blanks < -1
        obs = np.zeros(N_CUES + 1, np.float32)
        obs[-1] = self.blanks == -1
        return obs, float(ended and self.is_right(int(action))), ended, False, {}

    def is_right(self, action: int) -> bool:
        """Whether an action is the cue."""
        return action == self.cue


class MaskedRecall(Recall):
    """
    Each cue has two actions, of which in each episode one is valid, and only the mask says which. An invalid action pays
    nothing. So the best mean return is 1/2 without masks, 1/3 without memory, and 1 with both.
    """

    action_space = spaces.Discrete(2 * N_CUES)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode."""
        obs, _ = super().reset(seed=seed)
        self.mask = np.zeros(2 * N_CUES, bool)
        self.mask[2 * np.arange(N_CUES) + self.np_random.integers(2, size=N_CUES)] = True
        return obs, {"action_mask": self.mask.copy()}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """As without masks, with the mask of the episode."""
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, reward, terminated, truncated, {"action_mask": self.mask.copy()}

    def action_masks(self) -> np.ndarray:
        """The mask of the coming step, for callers that do not look into ``info``."""
        return self.mask

    def is_right(self, action: int) -> bool:
        """Whether an action is the valid one of the cue."""
        return bool(self.mask[action]) and action // 2 == self.cue


gym.register("Recall-v0", f"{__name__}:Recall")
gym.register("MaskedRecall-v0", f"{__name__}:MaskedRecall")
