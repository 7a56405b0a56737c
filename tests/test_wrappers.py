import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ppo_variants import PPOClip
from sb3_ppo_variants.wrappers import TimeLimitIsTerminal, UnboundedActions


def test_actions_reach_the_environment_as_they_are_and_the_simulation_clamps_the_forces():
    def step(action):
        env = UnboundedActions(gym.make("HalfCheetah-v4"))
        env.reset(seed=0)
        position, _, _, _, info = env.step(np.full(6, action, np.float32))
        return position, info["reward_ctrl"]

    (position, _), (same_position, cost) = step(1.0), step(10.0)
    # The control cost of HalfCheetah-v4 is 0.1 |a|^2
    assert cost == pytest.approx(-0.1 * 6 * 10**2)
    np.testing.assert_array_equal(position, same_position)


def test_sb3_does_not_clip_the_actions():
    env = DummyVecEnv([lambda: UnboundedActions(gym.make("Pendulum-v1"))])
    model = PPOClip("MlpPolicy", env, n_steps=64, policy_kwargs={"log_std_init": 3.0}, seed=0)
    seen = []
    model.learn(64, callback=lambda locals_, globals_: seen.append(locals_["clipped_actions"] - locals_["actions"]) or True)
    assert len(seen) == 64
    assert not np.any(seen)
    assert np.abs(model.rollout_buffer.actions).max() > 2


def test_discrete_actions_are_refused():
    with pytest.raises(ValueError, match=r"env must have a Box action space of floats, but has Discrete\(2\)"):
        UnboundedActions(gym.make("CartPole-v1"))


def test_the_time_limit_is_terminal():
    env = TimeLimitIsTerminal(gym.make("Pendulum-v1"))
    env.reset(seed=0)
    for step in range(200):
        _, _, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
        assert not truncated
        assert terminated == (step == 199)
