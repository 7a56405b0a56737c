import copy
import warnings
from types import ModuleType

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_ppo_variants import zoo


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Sums over several threads are not reproducible bit for bit."""
    th.set_num_threads(1)


@pytest.fixture(scope="module")
def exp_manager() -> ModuleType:
    with warnings.catch_warnings():
        # What the Zoo's imports warn of is not ours
        warnings.simplefilter("ignore")
        zoo.register()
        from rl_zoo3 import exp_manager
    return exp_manager


class SpaceEnv(gym.Env):
    """An environment with any spaces: random observations, a reward that depends on the action, episodes of 13 steps."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, truncate: bool = True):
        # Spaces sample from generators of their own
        self.observation_space = copy.deepcopy(observation_space)
        self.action_space = copy.deepcopy(action_space)
        self.truncate = truncate
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        over = self.steps == 13
        reward = float(np.sum(action)) / 10 + self.np_random.normal()
        return self.observation_space.sample(), reward, over and not self.truncate, over and self.truncate, {}


OBSERVATION_SPACES = {
    "box": spaces.Box(-1, 1, (5,), np.float32),
    "discrete": spaces.Discrete(4),
    "image": spaces.Box(0, 255, (3, 36, 36), np.uint8),
    "dict": spaces.Dict({"vector": spaces.Box(-1, 1, (3,), np.float32), "image": spaces.Box(0, 255, (1, 36, 36), np.uint8)}),
}

ACTION_SPACES = {
    "box": spaces.Box(-2, 2, (3,), np.float32),
    "discrete": spaces.Discrete(3),
    "multidiscrete": spaces.MultiDiscrete([2, 3, 4]),
    "multibinary": spaces.MultiBinary(3),
}
