"""
Section 6.4 scaled down: the win counts of PPO, A2C and ACER in the five games of MinAtar (Young and Tian 2019,
https://arxiv.org/abs/1903.03176), ten seeds each.

    pip install -c constraints.txt -e ".[benchmarks,minatar]"
    python -m benchmarks.minatar [--jobs 2]     # runs what is missing in the results, then reports
    python -m benchmarks.minatar --report       # reports only

docs/minatar.md has the plan and the rules, which were set before any run.

Runs are appended to benchmarks/results/minatar.csv as they end, so that an interrupted call goes on where it was.
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from benchmarks import runs
from benchmarks.contestants.rmsprop import RMSPROP
from benchmarks.paper import statistics, wins
from benchmarks.paper.cells import format_bootstrapped, table
from benchmarks.provenance import origin

RESULTS = Path(__file__).parent / "results" / "minatar.csv"
GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
# Ten. The eight environments of a run have the seeds from its own on
SEEDS = range(0, 100, 10)
TIMESTEPS = 2_000_000
N_ENVS = 8
PACKAGES = ("stable-baselines3", "torch", "gymnasium", "minatar", "numpy")
# Of Table 2, by the columns of the results
CRITERIA = {"training": "mean return of all episodes", "last": "mean return of the last 100 episodes"}

# Step sizes as published
PUBLISHED = {"PPO": 2.5e-4, "A2C": 7e-4, "ACER": 7e-4}
# By what the pilot multiplies them
FACTORS = {"PPO": 16.0, "A2C": 16.0, "ACER": 16.0}
# PPO and A2C can be compared before ACER, which takes longest
GROUPS = (("PPO", "A2C"), ("ACER",))
PLANNED = [(algorithm, game, seed) for group in GROUPS for seed in SEEDS for game in GAMES for algorithm in group]
HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    # Table 5, whose alpha goes from 1 to 0
    "PPO": {"n_steps": 128, "batch_size": 256, "n_epochs": 3, "gae_lambda": 0.95, "vf_coef": 1.0, "ent_coef": 0.01},
    # openai/baselines, which halved the squared error at the release of its A2C
    "A2C": {"n_steps": 5, "vf_coef": 0.25, "ent_coef": 0.01, "max_grad_norm": 0.5},
    # openai/baselines, which counts the steps of each environment
    "ACER": {
        "n_steps": 20,
        "vf_coef": 0.5,
        "ent_coef": 0.01,
        "buffer_size": 50_000 * N_ENVS,
        "learning_starts": 10_000 * N_ENVS,
    },
}
OPTIMIZERS: dict[str, dict[str, Any]] = {"PPO": {}, "A2C": RMSPROP, "ACER": RMSPROP}


class MinAtar(gym.Env[np.ndarray, np.int64]):
    """
    A game of MinAtar with channels first.

    :param game: its name
    """

    def __init__(self, game: str) -> None:
        from minatar import Environment

        self.game = Environment(game)
        self.actions = self.game.minimal_action_set()
        *sides, channels = self.game.state_shape()
        self.observation_space = spaces.Box(0, 1, (channels, *sides), np.bool_)
        self.action_space = spaces.Discrete(len(self.actions))

    def _observation(self) -> np.ndarray:
        return np.ascontiguousarray(self.game.state().transpose(2, 0, 1), np.bool_)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self.game.seed(seed)
        self.game.reset()
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Act."""
        reward, terminated = self.game.act(self.actions[int(action)])
        return self._observation(), float(reward), bool(terminated), False, {}


class MinAtarCNN(BaseFeaturesExtractor):
    """
    The network of MinAtar's paper.

    :param observation_space: channels first
    """

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=128)
        channels, height, width = observation_space.shape
        self.cnn = nn.Sequential(nn.Conv2d(channels, 16, 3), nn.ReLU(), nn.Flatten())
        self.linear = nn.Sequential(nn.Linear(16 * (height - 2) * (width - 2), 128), nn.ReLU())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """The features."""
        return self.linear(self.cnn(observations))


def make_model(algorithm: str, env: str, seed: int, timesteps: int = TIMESTEPS, factor: float | None = None) -> Any:
    """
    What a run trains.

    :param algorithm: name of the algorithm
    :param env: name of the game
    :param seed: the seed
    :param timesteps: length of the training
    :param factor: of the published step size; ``None`` for that of ``FACTORS``
    :return: the model, which keeps the returns of all episodes
    """
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.utils import LinearSchedule

    from benchmarks.contestants.acer import ACER
    from benchmarks.contestants.quick_rollouts import A2C
    from sb3_ppo_variants import PPOClip

    vec_env = make_vec_env(lambda: MinAtar(env), N_ENVS, seed=seed)
    annealed = partial(LinearSchedule, end=0.0, end_fraction=1.0)
    kwargs: dict[str, Any] = {
        "learning_rate": annealed(PUBLISHED[algorithm] * (FACTORS[algorithm] if factor is None else factor)),
        "policy_kwargs": {"features_extractor_class": MinAtarCNN, "net_arch": [], **OPTIMIZERS[algorithm]},
        "seed": seed,
        "device": "cpu",
        "stats_window_size": timesteps,
        **HYPERPARAMETERS[algorithm],
    }
    if algorithm == "PPO":
        return PPOClip("MlpPolicy", vec_env, clip_range=annealed(0.1), compile=True, **kwargs)
    return {"A2C": A2C, "ACER": ACER}[algorithm]("MlpPolicy", vec_env, **kwargs)


def train(algorithm: str, env: str, seed: int, timesteps: int = TIMESTEPS, factor: float | None = None) -> dict[str, Any]:
    """
    A run.

    :param algorithm: as in ``make_model``, as the others
    :param env: likewise
    :param seed: likewise
    :param timesteps: likewise
    :param factor: likewise
    :return: a row of the results
    """
    th.set_num_threads(1)
    start = time.perf_counter()
    model = make_model(algorithm, env, seed, timesteps, factor)
    model.learn(timesteps, log_interval=None)
    returns = [episode["r"] for episode in model.ep_info_buffer]
    by_training, by_last = wins.criteria(returns)
    return {
        "algorithm": algorithm,
        "env": env,
        "seed": seed,
        "learning_rate": model.lr_schedule(1.0),
        "timesteps": model.num_timesteps,
        "in_episodes": sum(episode["l"] for episode in model.ep_info_buffer),
        "episodes": len(returns),
        "training": round(by_training, 4),
        "last": round(by_last, 4),
        "seconds": round(time.perf_counter() - start, 1),
        **origin(PACKAGES),
    }


def complete_rows(results: Path = RESULTS) -> list[dict[str, str]]:
    """The results of the algorithms all of whose runs are there."""
    incomplete = {algorithm for algorithm, _, _ in runs.missing(results, PLANNED)}
    return [row for row in runs.load(results) if row["algorithm"] not in incomplete]


def scores(rows: Sequence[dict[str, str]], criterion: str) -> dict[str, dict[str, np.ndarray]]:
    """
    Scores by one criterion.

    :param rows: of the results, with as many runs of each algorithm in each of the games
    :param criterion: ``training`` or ``last``
    :return: of each game, of each algorithm, one for each seed
    """
    found = runs.scores(rows, criterion)
    return {game: {name: found[game][name] for name in PUBLISHED if name in found[game]} for game in GAMES}


def printed_means(of_games: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, float]]:
    """The means over the seeds, as the tables have them: by these, games are won."""
    return {game: {name: round(float(x.mean()), 2) for name, x in of_game.items()} for game, of_game in of_games.items()}


def scores_table(rows: Sequence[dict[str, str]], criterion: str) -> str:
    """
    Scores, and games won.

    :param rows: as in ``scores``
    :param criterion: likewise
    :return: a table, and the ties
    """
    of_games = scores(rows, criterion)
    means = printed_means(of_games)
    names, lines = list(next(iter(of_games.values()))), []
    for game, of_game in of_games.items():
        best = max(means[game].values())
        marks = {name: "**" if means[game][name] == best else "" for name in of_game}
        cells = [f"{marks[name]}{means[game][name]:.2f}{marks[name]} ± {x.std(ddof=1):.2f}" for name, x in of_game.items()]
        lines.append([game, *cells])
    counts, ties = wins.count_wins(means)
    lines.append(["games won", *(str(counts[name]) for name in names)])
    return f"{table(['game', *names], lines)}\n\nTies: {', '.join(ties) or 'none'}"


def leads(rows: Sequence[dict[str, str]], criterion: str) -> str:
    """
    Whether the lead of one algorithm over another is more than luck.

    :param rows: as in ``scores``
    :param criterion: likewise
    :return: the table
    """
    of_games = scores(rows, criterion)
    means = printed_means(of_games)
    names, lines = list(next(iter(of_games.values()))), []
    for one, other in combinations(names, 2):
        won, lost = wins.compare(means, one, other)
        samples = [np.stack([of_game[name] for of_game in of_games.values()]) for name in (one, other)]
        better = format_bootstrapped(statistics.probability_of_improvement, *samples)
        by_game = statistics.probability_of_improvement(*(of_game[:, None] for of_game in samples))
        cells = [f"{won} to {lost}", f"p = {wins.sign_test(won, lost):.2f}", better, *(f"{x:.2f}" for x in by_game)]
        lines.append([f"{one} over {other}", *cells])
    return table(["lead", "games won", "sign test", "better run (95% interval)", *(f"in {game}" for game in of_games)], lines)


def wins_table(rows: Sequence[dict[str, str]]) -> str:
    """
    The games won by both criteria, beside those of Table 2.

    :param rows: as in ``scores``
    :return: the table
    """
    names = [name for name in PUBLISHED if any(row["algorithm"] == name for row in rows)]
    lines = []
    for criterion, title in CRITERIA.items():
        counts, _ = wins.count_wins(printed_means(scores(rows, criterion)))
        numbers = [*(counts[name] for name in names), *(wins.TABLE_2[criterion][name] for name in PUBLISHED)]
        lines.append([title, *map(str, numbers)])
    return table(["games won by", *names, *(f"paper: {name}" for name in PUBLISHED)], lines)


def stuck(rows: list[dict[str, str]]) -> list[str]:
    """
    The runs whose scores leave out much of them, as long episodes have not ended.

    :param rows: of the results
    :return: their names, with the percentage of the timesteps that count
    """
    fractions = [(row, int(row["in_episodes"]) / int(row["timesteps"])) for row in rows]
    return [f"{row['algorithm']} {row['env']} {row['seed']} ({x:.0%})" for row, x in fractions if x < 0.9]


def report(results: Path = RESULTS) -> None:
    """Print the tables of the algorithms all of whose runs are there."""
    if rows := complete_rows(results):
        print(wins_table(rows))
        for criterion, title in CRITERIA.items():
            print(f"\n{title.capitalize()}\n\n{scores_table(rows, criterion)}\n\n{leads(rows, criterion)}")
        print(f"\nLess than 90% of the timesteps in episodes that ended: {', '.join(stuck(rows)) or 'none'}")


def main() -> None:
    """Run and report."""
    runs.command(__doc__, RESULTS, train, PLANNED, report)


if __name__ == "__main__":
    main()
