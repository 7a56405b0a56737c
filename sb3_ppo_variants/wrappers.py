"""Wrappers of environments for experiments like those of the paper."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class UnboundedActions(gym.ActionWrapper[Any, Any, Any]):
    """
    An environment that takes actions of any size, as the paper's authors' code of 2017 passed them on: SB3 clips actions to
    the bounds of the action space before the environment sees them. MuJoCo clamps the forces to the bounds of its motors, but
    rewards may charge for the action as it is: HalfCheetah's is unbounded below with this wrapper.

    :param env: an environment with a ``Box`` action space of floats
    :raises ValueError: if it has another action space
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        space = env.action_space
        if not (isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)):
            raise ValueError(f"env must have a Box action space of floats, but has {space}")
        # SB3 does not allow infinite bounds
        largest = np.finfo(space.dtype).max
        self.action_space = spaces.Box(-largest, largest, space.shape, space.dtype.type)

    def action(self, action: Any) -> Any:
        """The action, as it is."""
        return action


class TimeLimitIsTerminal(gym.Wrapper[Any, Any, Any, Any]):
    """
    An environment whose episodes end for good at the time limit: the value of the last observation does not go on, as in the
    paper's authors' code of 2017 (openai/baselines, ppo1), which knew no other end.

    :param env: any environment
    """

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """The step of the environment, never truncated."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated or truncated, False, info
