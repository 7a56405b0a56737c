"""
A game of PettingZoo for two as a task of Gymnasium, whose observations bring the action masks along.

    pip install ".[games]"
    python -m rl_zoo3.train --algo ppo_clip --env ConnectFour-v0 --gym-packages benchmarks.connect_four
    python -m benchmarks.connect_four logs/*/ConnectFour-v0_1/ConnectFour-v0.zip  # what they win, and an untrained policy
"""

import sys
from collections import Counter
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class AgainstRandom(gym.Env):
    """
    A game against somebody who draws among the valid actions. Who begins is drawn, too.

    :param game: an AEC environment of two players who take turns, see the same spaces, and are paid when the game ends
    """

    def __init__(self, game: Any) -> None:
        self.game = game
        self.metadata, self.render_mode = game.metadata, game.render_mode
        space = game.observation_space(game.possible_agents[0])
        self.observation_space = spaces.Dict({**space.spaces, "observation": spaces.flatten_space(space["observation"])})
        self.action_space = game.action_space(game.possible_agents[0])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin a game."""
        super().reset(seed=seed)
        self.game.reset(seed=seed)
        self.player = self.game.possible_agents[self.np_random.integers(2)]
        if self.game.agent_selection != self.player:
            self._opponent_moves()
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """A move of the player, and one of the opponent."""
        self.game.step(action)
        if not self.game.terminations[self.player]:
            self._opponent_moves()
        game, player = self.game, self.player
        return self._observe(), float(game.rewards[player]), game.terminations[player], game.truncations[player], {}

    def _observe(self) -> dict[str, np.ndarray]:
        observation = self.game.observe(self.player)
        # A board is no image to SB3
        return {**observation, "observation": observation["observation"].ravel()}

    def _opponent_moves(self) -> None:
        valid = self.game.observe(self.game.agent_selection)["action_mask"]
        self.game.step(self.np_random.choice(np.flatnonzero(valid)))

    def render(self) -> Any:
        """A picture of the board."""
        return self.game.render()

    def close(self) -> None:
        """Close the game's window."""
        self.game.close()


def connect_four(render_mode: str | None = None) -> AgainstRandom:
    """
    Connect four against a random opponent.

    :param render_mode: "human" or "rgb_array"
    :return: the environment
    """
    # By its module, which old and new PettingZoo have
    from pettingzoo.classic.connect_four.connect_four import env

    return AgainstRandom(env(render_mode=render_mode))


gym.register("ConnectFour-v0", "benchmarks.connect_four:connect_four")


def play(model: Any, n_games: int = 1000) -> tuple[int, int, int]:
    """
    Let a model play as it does in training.

    :param model: the model
    :param n_games: number of games
    :return: how many it has won, drawn and lost
    """
    env = connect_four()
    model.set_random_seed(0)
    rewards: Counter[float] = Counter()
    for seed in range(n_games):
        observation, _ = env.reset(seed=seed)
        is_over = False
        while not is_over:
            observation, reward, is_over, _, _ = env.step(model.predict(observation)[0])
        rewards[reward] += 1
    return rewards[1], rewards[0], rewards[-1]


def main() -> None:
    """Print a table of saved models."""
    from sb3_ppo_variants import PPOClip

    print("| | won | drawn | lost |\n|---|---|---|---|")
    # It loads the models of all variants
    models = {path: PPOClip.load(path, device="cpu") for path in sys.argv[1:]}
    for name, model in {"untrained": PPOClip("MaskableMlpPolicy", connect_four(), seed=0, device="cpu"), **models}.items():
        print(f"| {name} | {' | '.join(map(str, play(model)))} |")


if __name__ == "__main__":
    main()
