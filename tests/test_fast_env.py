"""The environment lane by itself: steps of DummyVecEnv and VecNormalize, bit for bit."""

import functools
from collections import OrderedDict

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize
from support import SpaceEnv, equal

from sb3_ppo_variants.fast import env as fast_env

SPACES = {
    "float32": spaces.Box(-3, 3, (4,), np.float32),
    "float64": spaces.Box(-3, 3, (4,), np.float64),
    "float16": spaces.Box(-3, 3, (4,), np.float16),
    "uint8": spaces.Box(0, 255, (4,), np.uint8),
    "matrix": spaces.Box(-3, 3, (2, 3), np.float32),
    "number": spaces.Box(-3, 3, (), np.float32),
    "dict": spaces.Dict({"a": spaces.Box(-3, 3, (), np.float32), "b": spaces.Box(-3, 3, (3,), np.float64)}),
}


def make(space, n_envs, wrap):
    env_fn = functools.partial(SpaceEnv, SPACES[space], spaces.Discrete(3))
    env = wrap(make_vec_env(env_fn, n_envs=n_envs, seed=0))
    env.reset()
    return env


def types_of(result):
    parts = result.items() if isinstance(result, dict) else [(None, result)]
    return {name: getattr(part, "dtype", None) for name, part in parts}


WRAPPERS = {
    "none": lambda env: env,
    "normalize": VecNormalize,
    "normalize observations": lambda env: VecNormalize(env, norm_reward=False, clip_obs=0.5),
    "normalize rewards": lambda env: VecNormalize(env, norm_obs=False, gamma=0.9, clip_reward=0.5),
    "frozen statistics": lambda env: VecNormalize(env, training=False),
    "monitor": lambda env: VecNormalize(VecMonitor(env)),
    "frame stack": lambda env: VecNormalize(VecFrameStack(env, 2)),
    "a part": lambda env: VecNormalize(env, norm_obs_keys=["b"]),
}


@pytest.mark.filterwarnings("ignore:The environment is already wrapped with a `Monitor`")
@pytest.mark.parametrize(
    ("space", "n_envs", "wrapper"),
    [
        *((space, n_envs, wrapper) for space in SPACES for n_envs, wrapper in ((1, "none"), (3, "normalize"))),
        *(("dict" if wrapper == "a part" else "float32", 1 + 2 * (i % 2), wrapper) for i, wrapper in enumerate(WRAPPERS)),
        *(("dict", 2, wrapper) for wrapper in ("normalize rewards", "frozen statistics")),
    ],
)
def test_steps_are_those_of_sb3(space, n_envs, wrapper):
    theirs, ours = (make(space, n_envs, WRAPPERS[wrapper]) for _ in range(2))
    step = fast_env.lane(ours)
    assert step is not None
    rng = np.random.default_rng(0)
    episodes = 0
    for _ in range(40):
        actions = rng.integers(3, size=n_envs)
        expected, actual = theirs.step(actions), step(actions)
        for a, b in zip(expected, actual, strict=True):
            assert type(a) is type(b)
            without_time = [[{**info, "episode": None} for info in x] if isinstance(x, list) else x for x in (a, b)]
            assert equal(*without_time)
            assert types_of(a) == types_of(b)
        episodes += expected[2].sum()
        if isinstance(theirs, VecNormalize):
            assert equal(theirs.get_original_obs(), ours.get_original_obs())
            assert equal(theirs.get_original_reward(), ours.get_original_reward())
            assert equal(theirs.returns, ours.returns)
            assert equal(vars(theirs.ret_rms), vars(ours.ret_rms))
            if theirs.norm_obs:
                statistics = [env.obs_rms.values() if space == "dict" else [env.obs_rms] for env in (theirs, ours)]
                assert equal(*([vars(of_part) for of_part in of_env] for of_env in statistics))
    # Episodes of 13 steps
    assert episodes == 3 * n_envs


def test_keys_that_are_normalized_may_change():
    theirs, ours = (make("dict", 2, VecNormalize) for _ in range(2))
    for env in (theirs, ours):
        env.norm_obs_keys = ["b"]
    actions = np.ones(2, dtype=int)
    assert equal(theirs.step(actions)[0], fast_env.lane(ours)(actions)[0])


@pytest.mark.parametrize("cls", [dict, OrderedDict])
def test_infos_keep_their_type_and_belong_to_the_caller(cls):
    class OwnInfo(SpaceEnv):
        def step(self, action):
            return *super().step(action)[:4], cls(array=np.ones(2), nested={"list": [1]})

    env = DummyVecEnv([lambda: OwnInfo(SPACES["float32"], spaces.Discrete(3))])
    env.reset()
    info = fast_env.lane(env)(np.array([0]))[3][0]
    assert type(info) is cls
    info["array"][0] = 7
    info["nested"]["list"].append(2)
    assert env.buf_infos[0]["array"][0] == 1
    assert env.buf_infos[0]["nested"] == {"list": [1]}


def test_lane_is_for_vectorized_environments_of_sb3():
    own, own_normalize = (type("Own", (cls,), {}) for cls in (DummyVecEnv, VecNormalize))
    assert fast_env.lane(own([lambda: gym.make("Pendulum-v1")])) is None
    assert fast_env.lane(make("float32", 1, own_normalize)) is None
