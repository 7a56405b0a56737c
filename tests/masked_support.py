"""Environments with action masks, for the tests of policies that take them."""

import functools

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from support import ACTION_SPACES, OBSERVATION_SPACES, SpaceEnv

from benchmarks.masked_env import random_masks
from sb3_ppo_variants.masks import KEY, heads_of

WAYS = ("observation", "info", "method")


class GivesMasks(gym.Wrapper):
    """Gives random masks in one of three ways, the same ones in each, and accepts no invalid action."""

    def __init__(self, env: gym.Env, way: str):
        super().__init__(env)
        self.way, self.heads, self.rng = way, heads_of(env.action_space), np.random.default_rng(0)
        self.mask = np.ones(sum(self.heads), bool)
        if way == "method":
            self.action_masks = lambda: self.mask
        if way == "observation":
            space = env.observation_space
            parts = space.spaces if isinstance(space, spaces.Dict) else {"observation": space}
            self.observation_space = spaces.Dict({**parts, KEY: spaces.Box(0, 1, self.mask.shape, np.int8)})

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        return self.given(*self.env.reset(seed=seed, options=options))

    def step(self, action):
        # One choice for each part of the action
        chosen = np.cumsum((0, *self.heads[:-1])) + np.reshape(action, -1)
        assert self.mask[chosen].all(), "an invalid action"
        obs, reward, terminated, truncated, info = self.env.step(action)
        obs, info = self.given(obs, info)
        return obs, reward, terminated, truncated, info

    def new_mask(self):
        # At least one action for each part, often no other
        return random_masks(self.heads, 1, self.rng, 0.3)[0]

    def given(self, obs, info):
        self.mask = self.new_mask()
        if self.way == "info":
            info = {**info, KEY: self.mask.astype(np.int8)}
        if self.way == "observation":
            obs = {**(obs if isinstance(obs, dict) else {"observation": obs}), KEY: self.mask.astype(np.int8)}
        return obs, info


def masked_env(observation, action, way="method", n_envs=2, **kwargs):
    """A function that makes a vectorized environment with spaces of these names, and masks."""

    def make(truncate=True):
        return GivesMasks(SpaceEnv(OBSERVATION_SPACES[observation], ACTION_SPACES[action], truncate), way)

    return functools.partial(make_vec_env, make, n_envs=n_envs, seed=0, **kwargs)
