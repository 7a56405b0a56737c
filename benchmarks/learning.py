"""
Whether the compiled PPOClip learns what SB3's PPO learns: real tasks, ten seeds each.

    python -m benchmarks.learning [--jobs 2]     # runs what is missing in benchmarks/results/learning.csv, then reports
    python -m benchmarks.learning --report       # reports only

The score of a run is the mean return of the last 100 training episodes, as in section 6.1 of the paper. Runs are appended to
the file as they end, so that an interrupted call goes on where it was.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import runs

RESULTS = Path(__file__).parent / "results" / "learning.csv"
ENVS = ("Hopper-v4", "HalfCheetah-v4")
ALGORITHMS = ("SB3 PPO", "PPOClip")
SEEDS = range(10)
TIMESTEPS = 300_000
FIELDS = ("algorithm", "env", "seed", "timesteps", "episodes", "score", "seconds", "sb3", "torch", "mujoco")


def train(algorithm: str, env: str, seed: int) -> dict[str, Any]:
    """
    A run.

    :param algorithm: name of the algorithm
    :param env: id of the task
    :param seed: the seed
    :return: a row of the results
    """
    import time

    import torch as th
    from stable_baselines3 import PPO

    from sb3_ppo_variants import PPOClip

    th.set_num_threads(1)
    start = time.perf_counter()
    if algorithm == "SB3 PPO":
        model: Any = PPO("MlpPolicy", env, seed=seed, device="cpu")
    else:
        model = PPOClip("MlpPolicy", env, seed=seed, device="cpu", compile=True)
    model.learn(TIMESTEPS)
    returns = [episode["r"] for episode in model.ep_info_buffer]
    seconds = round(time.perf_counter() - start, 1)
    versions = (version("stable-baselines3"), version("torch"), version("mujoco"))
    values = (algorithm, env, seed, model.num_timesteps, len(returns), round(float(np.mean(returns)), 3), seconds, *versions)
    return dict(zip(FIELDS, values, strict=True))


def bootstrap_difference(ours: np.ndarray, theirs: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float]:
    """
    Difference of the mean scores with a 95% bootstrap interval over the seeds of each.

    :param ours: scores, one per seed
    :param theirs: scores of the other
    :param rng: random generator
    :return: the difference, lower and upper end
    """
    means = [rng.choice(scores, (10_000, len(scores))).mean(axis=1) for scores in (ours, theirs)]
    low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
    return float(ours.mean() - theirs.mean()), float(low), float(high)


def probability_of_improvement(ours: np.ndarray, theirs: np.ndarray) -> float:
    """
    Probability that a run of ours has the higher score than a run of theirs, ties counted half.

    :param ours: scores, one per seed
    :param theirs: scores of the other
    :return: the probability; 0.5 if they are equally good
    """
    return float((ours[:, None] > theirs).mean() + 0.5 * (ours[:, None] == theirs).mean())


def report() -> int:
    """
    Print the table.

    :return: number of runs that are missing
    """
    rows = runs.load(RESULTS)
    rng = np.random.default_rng(0)
    print(
        f"| task, {TIMESTEPS} timesteps | SB3's PPO | PPOClip(compile=True) | difference (95% interval) | P(PPOClip > SB3) |"
    )
    print("|---|---|---|---|---|")
    for env in ENVS:
        theirs, ours = (
            np.array([float(row["score"]) for row in rows if row["env"] == env and row["algorithm"] == algorithm])
            for algorithm in ALGORITHMS
        )
        if len(ours) < 2 or len(theirs) < 2:
            continue
        difference, low, high = bootstrap_difference(ours, theirs, rng)
        probability = probability_of_improvement(ours, theirs)
        scores = " | ".join(f"{x.mean():.0f} ± {x.std(ddof=1):.0f} ({len(x)} seeds)" for x in (theirs, ours))
        print(f"| {env} | {scores} | {difference:+.0f} ({low:+.0f} to {high:+.0f}) | {probability:.2f} |")
    missing = len(ENVS) * len(ALGORITHMS) * len(SEEDS) - len(rows)
    if missing:
        print(f"\n{missing} runs are missing: python -m benchmarks.learning")
    return missing


def main() -> None:
    """Run and report."""
    planned = [(algorithm, env, seed) for seed in SEEDS for env in ENVS for algorithm in ALGORITHMS]
    runs.command(__doc__, RESULTS, train, planned, report)


if __name__ == "__main__":
    main()
