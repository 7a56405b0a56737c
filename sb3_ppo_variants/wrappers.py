"""Wrappers of environments for experiments like those of the paper."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class UnboundedActions(gym.ActionWrapper[Any, Any, Any]):
    """
    Lets actions of any size through to an environment, as the paper's authors' code of 2017 did; SB3 clips actions to the
    bounds of the action space before the environment sees them. MuJoCo clamps the forces to the bounds of its motors, but a
    reward may charge for the action as it is: with this wrapper, HalfCheetah's reward is unbounded below.

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
    Makes the time limit of an environment a termination: returns are not bootstrapped from the value of the last observation,
    as in the paper's authors' code of 2017 (openai/baselines, ppo1), which knew no other end.

    :param env: any environment
    """

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """The step of the environment, never truncated."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated or truncated, False, info
