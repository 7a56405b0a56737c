"""PettingZoo's connect four as a task with action masks."""

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common import env_checker
from stable_baselines3.common.evaluation import evaluate_policy

from benchmarks import connect_four
from sb3_ppo_variants import PPOKLPen

pytest.importorskip("pettingzoo")


class Chooses:
    """In place of a random generator: who begins, and which of the valid columns the opponent takes."""

    def __init__(self, player, column):
        self.player, self.column = player, column

    def integers(self, high):
        return self.player

    def choice(self, valid):
        return valid[self.column]


def game(player, column):
    env = connect_four.connect_four()
    env.np_random = Chooses(player, column)
    observation, _ = env.reset()
    return env, observation


def test_is_an_environment():
    env = gym.make("ConnectFour-v0", render_mode="rgb_array").unwrapped
    check_env(env)
    env_checker.check_env(env)
    assert env.render().shape[-1] == 3
    env.close()


@pytest.mark.parametrize(("player", "n_moves", "reward"), [(0, 4, 1.0), (1, 3, -1.0)])
def test_who_begins_is_first_with_four_in_a_column(player, n_moves, reward):
    # The player takes the first column, the opponent the last one
    env, observation = game(player, -1)
    assert observation["observation"].sum() == player
    for _ in range(n_moves - 1):
        observation, *outcome, _ = env.step(0)
        assert outcome == [0.0, False, False]
        assert observation["action_mask"].tolist() == [1] * 7
        # Squares row by row from the top, for each whether it is the player's and whether it is the opponent's
        assert observation["observation"][[2 * 35, 2 * 41 + 1]].tolist() == [1, 1]
    _, *outcome, _ = env.step(0)
    assert outcome == [reward, True, False]


def test_a_full_column_is_masked_and_loses():
    env, _ = game(0, 0)
    for _ in range(3):
        observation, *_ = env.step(0)
    assert observation["action_mask"].tolist() == [0, 1, 1, 1, 1, 1, 1]
    _, reward, terminated, _, _ = env.step(0)
    assert (reward, terminated) == (-1.0, True)


def test_opponent_draws():
    env = connect_four.connect_four()
    first = {tuple(env.reset(seed=seed)[0]["observation"]) for seed in range(100)}
    # The player begins, or the opponent has taken one of seven columns
    assert len(first) == 8


def test_trains_and_plays_without_invalid_moves(monkeypatch):
    from pettingzoo.utils.env_logger import EnvLogger

    # Called where a move is invalid
    monkeypatch.setattr(EnvLogger, "warn_on_illegal_move", None)
    model = PPOKLPen("MaskableMlpPolicy", connect_four.connect_four(), n_steps=64, n_epochs=1, seed=0).learn(128)
    assert model.policy.observation_space.shape == (84,)
    assert sum(connect_four.play(model, 50)) == 50
    assert set(evaluate_policy(model, model.get_env(), 50, return_episode_rewards=True)[0]) <= {-1.0, 0.0, 1.0}
