"""
Section 6.4 itself, as far as a small machine goes: PPO and A2C in six games, three seeds of 1 million timesteps each, a tenth
of the paper's. So only signs are compared: in which games PPO is ahead of A2C, here and in Table 6.

    pip install -c constraints.txt -e ".[benchmarks,atari]"
    python -m benchmarks.atari [--jobs 2]     # runs what is missing in the results, some days, then reports
    python -m benchmarks.atari --report       # reports only

The games were chosen before any run: in Table 6, PPO is ahead of A2C in the first three, and behind in the others. PPO has
Table 5; A2C has the defaults of openai/baselines, as in minatar.py, and a step size that goes to 0. Both have SB3's
AtariWrapper, eight environments, four frames and CnnPolicy. The score of a run is the mean return of its last 100 episodes,
which are whole games.

Runs are appended to benchmarks/results/atari.csv as they end, so that an interrupted call goes on where it was.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import runs
from benchmarks.minatar import HYPERPARAMETERS, N_ENVS, OPTIMIZERS, PUBLISHED
from benchmarks.paper import wins
from benchmarks.provenance import origin

RESULTS = Path(__file__).parent / "results" / "atari.csv"
GAMES = ("Enduro", "Freeway", "Boxing", "BeamRider", "Seaquest", "RoadRunner")
ALGORITHMS = ("PPO", "A2C")
# Three. The eight environments of a run have the seeds from its own on
SEEDS = range(0, 30, 10)
TIMESTEPS = 1_000_000
PLANNED = [(algorithm, game, seed) for seed in SEEDS for game in GAMES for algorithm in ALGORITHMS]
PACKAGES = ("stable-baselines3", "torch", "gymnasium", "ale-py", "numpy")


def train(algorithm: str, game: str, seed: int, timesteps: int = TIMESTEPS) -> dict[str, Any]:
    """
    A run.

    :param algorithm: PPO, A2C or ACER
    :param game: its name in Table 6
    :param seed: the seed
    :param timesteps: length of the training
    :return: a row of the results; scores are empty where no game ended
    """
    import ale_py
    import gymnasium as gym
    import torch as th
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.utils import LinearSchedule
    from stable_baselines3.common.vec_env import VecFrameStack

    from benchmarks.contestants.acer import ACER
    from benchmarks.contestants.quick_rollouts import A2C
    from sb3_ppo_variants import PPOClip

    gym.register_envs(ale_py)
    th.set_num_threads(1)
    start = time.perf_counter()
    vec_env = make_atari_env(f"{game}NoFrameskip-v4", N_ENVS, seed=seed)
    annealed = partial(LinearSchedule, end=0.0, end_fraction=1.0)
    kwargs: dict[str, Any] = {
        "learning_rate": annealed(PUBLISHED[algorithm]),
        "policy_kwargs": OPTIMIZERS[algorithm],
        "seed": seed,
        # All games
        "stats_window_size": timesteps,
        **HYPERPARAMETERS[algorithm],
    }
    if algorithm == "PPO":
        kwargs["clip_range"] = annealed(0.1)
    cls: Any = {"PPO": PPOClip, "A2C": A2C, "ACER": ACER}[algorithm]
    model = cls("CnnPolicy", VecFrameStack(vec_env, 4), **kwargs).learn(timesteps, log_interval=None)
    returns = [episode["r"] for episode in model.ep_info_buffer]
    by_training, by_last = wins.criteria(returns) if returns else ("", "")
    return {
        "algorithm": algorithm,
        "env": game,
        "seed": seed,
        "timesteps": model.num_timesteps,
        "episodes": len(returns),
        "training": by_training,
        "last": by_last,
        "seconds": round(time.perf_counter() - start, 1),
        "device": str(model.device),
        **origin(PACKAGES),
    }


def table(rows: list[dict[str, str]]) -> list[str]:
    """
    PPO minus A2C, here and in Table 6.

    :param rows: of the results
    :return: lines, without the games where either has no run
    """
    of_games = runs.scores(rows, "last")
    lines = ["| game | PPO | A2C | PPO - A2C | in Table 6 | same sign |", "|---" * 6 + "|"]
    for game, paper in wins.table6().items():
        scores = of_games.get(game, {})
        if not all(name in scores for name in ALGORITHMS):
            continue
        means = {name: values.mean() for name, values in scores.items()}
        here, there = (score["PPO"] - score["A2C"] for score in (means, paper))
        same = "yes" if here * there > 0 or here == there == 0 else "no"
        cells = [f"{means[name]:.1f} ({len(scores[name])} seeds)" for name in ALGORITHMS]
        lines.append(f"| {game} | {' | '.join(cells)} | {here:+.1f} | {there:+.1f} | {same} |")
    return lines


def report(results: Path = RESULTS) -> None:
    """Print the table."""
    rows = runs.load(results)
    print("\n".join(table(rows)))


def main() -> None:
    """Run and report."""
    runs.command(__doc__, RESULTS, train, PLANNED, report)


if __name__ == "__main__":
    main()
