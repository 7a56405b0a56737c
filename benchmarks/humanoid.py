"""
Section 6.3 of the paper scaled down: a humanoid learns to run forward, with the hyperparameters of Table 4 as written.

    pip install -c constraints.txt -e ".[benchmarks,bullet]"
    python -m benchmarks.humanoid [--jobs 2]     # runs what is missing in the results, some hours, then reports and draws
    python -m benchmarks.humanoid --report       # reports and draws only

Roboschool is no longer maintained: HumanoidBulletEnv-v0 is a port of its RoboschoolHumanoid-v1, whose returns are not those of
the paper. PPOClip has hyperparams/paper/table4_roboschool.yml, with the step size that follows the KL and the annealed
standard deviation of the actions, which reaches its end with the training: 5 million timesteps. The paper's are longer.

Runs are appended to benchmarks/results/humanoid.csv as they end, so that an interrupted call goes on where it was.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import runs
from benchmarks.provenance import origin
from sb3_ppo_variants.zoo import hyperparams_path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "humanoid.csv"
FIGURE = ROOT / "docs" / "figures" / "humanoid.svg"
ENV = "HumanoidBulletEnv-v0"
# Three. The 32 environments of a run have the seeds from its own on
SEEDS = range(0, 300, 100)
TIMESTEPS = 5_000_000
PLANNED = [("ppo_clip", ENV, seed) for seed in SEEDS]
# Points of the curve
N_WINDOWS = 20
PACKAGES = ("stable-baselines3", "rl-zoo3", "torch", "gymnasium", "pybullet", "pybullet_envs_gymnasium", "numpy")


def window_means(ends: Sequence[int], returns: Sequence[float], timesteps: int, n_windows: int = N_WINDOWS) -> list[float]:
    """
    Mean return of the episodes that end in each part of a training.

    :param ends: timestep at which each episode ends, from 1 on
    :param returns: return of each episode
    :param timesteps: length of the training
    :param n_windows: number of equal parts
    :return: a mean for each, NaN where no episode ends; what ends after the last timestep belongs to the last part
    """
    window = np.minimum((np.array(ends) - 1) * n_windows // timesteps, n_windows - 1)
    parts = (np.array(returns)[window == i] for i in range(n_windows))
    return [float(part.mean()) if len(part) else float("nan") for part in parts]


def train(algorithm: str, env: str, seed: int, timesteps: int = TIMESTEPS) -> dict[str, Any]:
    """
    A run.

    :param algorithm: the Zoo's name of the algorithm
    :param env: id of the task
    :param seed: the seed
    :param timesteps: length of the training
    :return: a row of the results; ``curve`` has the mean returns of its parts
    """
    import argparse
    import contextlib
    import io
    import tempfile

    import torch as th
    from rl_zoo3 import exp_manager
    from stable_baselines3.common.callbacks import BaseCallback

    from sb3_ppo_variants import zoo

    class Episodes(BaseCallback):
        """Notes when episodes end, and their returns."""

        def __init__(self) -> None:
            super().__init__()
            self.ends: list[int] = []
            self.returns: list[float] = []

        def _on_step(self) -> bool:
            finished = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
            self.returns += finished
            self.ends += [self.num_timesteps] * len(finished)
            return True

    zoo.register()
    th.set_num_threads(1)
    start, episodes = time.perf_counter(), Episodes()
    config = str(hyperparams_path(algorithm).parent / "paper" / "table4_roboschool.yml")
    # The Zoo writes folders and prints settings
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        manager = exp_manager.ExperimentManager(
            argparse.Namespace(),
            algorithm,
            env,
            folder,
            config=config,
            n_timesteps=timesteps,
            # No evaluations in between
            eval_freq=-1,
            seed=seed,
            device="cpu",
        )
        model, _ = manager.setup_experiment()  # type: ignore[misc]
        model.learn(timesteps, callback=[*manager.callbacks, episodes])
    return {
        "algorithm": algorithm,
        "env": env,
        "seed": seed,
        "timesteps": model.num_timesteps,
        "episodes": len(episodes.returns),
        "curve": " ".join(f"{mean:.1f}" for mean in window_means(episodes.ends, episodes.returns, timesteps)),
        "seconds": round(time.perf_counter() - start, 1),
        **origin(PACKAGES),
    }


def curves(rows: Sequence[dict[str, str]]) -> np.ndarray:
    """Those of all runs, of shape ``(n_runs, n_windows)``."""
    return np.array([[float(mean) for mean in row["curve"].split()] for row in rows])


def draw(rows: Sequence[dict[str, str]], path: Path) -> None:
    """
    The curve of each run, and their mean.

    :param rows: of the results
    :param path: where the figure goes
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "sb3_ppo_variants", "figure.constrained_layout.use": True})
    figure, axes = plt.subplots(figsize=(5, 3))
    steps = (np.arange(N_WINDOWS) + 0.5) * TIMESTEPS / N_WINDOWS / 1e6
    axes.plot(steps, curves(rows).T, color="C0", alpha=0.3, linewidth=1)
    axes.plot(steps, curves(rows).mean(axis=0), color="C0")
    axes.set(xlabel="timesteps (millions)", ylabel="mean return", title=f"{ENV}, {len(rows)} seeds and their mean")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def report(results: Path = RESULTS) -> None:
    """Print the table."""
    if rows := runs.load(results):
        n_rows = 5
        means = curves(rows)[:, N_WINDOWS // n_rows - 1 :: N_WINDOWS // n_rows]
        print(f"| timesteps | mean return, {len(rows)} seeds |\n|---|---|")
        for i, of_runs in enumerate(means.T, start=1):
            seeds = ", ".join(f"{mean:.0f}" for mean in of_runs)
            print(f"| {i * TIMESTEPS // n_rows / 1e6:.0f} million | {of_runs.mean():.0f} ({seeds}) |")


def report_and_draw(results: Path = RESULTS) -> None:
    """As ``report``, and the figure of the runs that there are."""
    if rows := runs.load(results):
        draw(rows, FIGURE)
    report(results)


def main() -> None:
    """Run, report and draw."""
    runs.command(__doc__, RESULTS, train, PLANNED, report_and_draw)


if __name__ == "__main__":
    main()
