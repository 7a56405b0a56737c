"""Equations (11) and (12): Stable-Baselines3's, and those of the fast lane."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from support import HalvedAdvantages

from sb3_ppo_variants.fast import advantages


def full_buffer(n_steps, n_envs, cls=RolloutBuffer, **kwargs):
    return cls(n_steps, spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,)), n_envs=n_envs, **kwargs)


@pytest.mark.parametrize("fast", [True, False])
def test_hand_numbers(fast):
    buffer = full_buffer(3, 3, gamma=0.5, gae_lambda=0.5)
    # One column an environment: the rollout ends within an episode, an episode ends after the first step, one after the last
    buffer.rewards[:] = [[1, 1, 1], [2, 2, 2], [4, 4, 4]]
    buffer.values[:] = [[2, 2, 2], [4, 4, 4], [8, 8, 8]]
    buffer.episode_starts[:] = [[1, 1, 1], [0, 1, 0], [0, 0, 0]]
    last_values, dones = th.tensor([[16.0], [16.0], [16.0]]), np.array([False, False, True])
    estimate = advantages.lane(buffer) if fast else buffer.compute_returns_and_advantage
    estimate(last_values=last_values, dones=dones)
    # delta_t = r_t + 0.5 V(s_t+1) - V(s_t), equation (12): 1 + 2 - 2 = 1, 2 + 4 - 4 = 2, 4 + 8 - 8 = 4;
    # 1 - 2 = -1 and 4 - 8 = -4 where the episode ends.
    # A_t = delta_t + 0.25 A_t+1, equation (11): 4, 2 + 1 = 3, 1 + 0.75; no A_t+1 where the episode ends
    assert buffer.advantages.tolist() == [[1.75, -1, 1.25], [3, 3, 1], [4, 4, -4]]
    # A + V
    assert buffer.returns.tolist() == [[3.75, 1, 3.25], [7, 7, 5], [12, 12, 4]]


@pytest.mark.parametrize("last_dtype", [th.float32, th.float64])
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (1, 1), (0.9, 0.0)])
def test_lane_is_sb3_bit_for_bit(gamma, gae_lambda, last_dtype):
    theirs, ours = (full_buffer(50, 3, gamma=gamma, gae_lambda=gae_lambda) for _ in range(2))
    rng = np.random.default_rng(0)
    for name in ("rewards", "values"):
        getattr(theirs, name)[:] = rng.normal(size=(50, 3))
    theirs.episode_starts[:] = rng.random((50, 3)) < 0.1
    assert 0 < theirs.episode_starts.sum() < 50
    for name in ("rewards", "values", "episode_starts"):
        getattr(ours, name)[:] = getattr(theirs, name)
    last_values, dones = th.as_tensor(rng.normal(size=(3, 1)), dtype=last_dtype), np.array([True, False, False])
    theirs.compute_returns_and_advantage(last_values, dones)
    advantages.lane(ours)(last_values=last_values, dones=dones)
    for name in ("rewards", "values", "episode_starts", "advantages", "returns"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        assert getattr(ours, name).dtype == np.float32


def test_lane_is_for_buffers_of_sb3_and_numbers_of_python():
    assert advantages.lane(full_buffer(3, 1)) is not None
    assert advantages.lane(full_buffer(3, 1, HalvedAdvantages)) is None
    # Added up in a wider type
    assert advantages.lane(full_buffer(3, 1, gamma=np.float64(0.9))) is None
