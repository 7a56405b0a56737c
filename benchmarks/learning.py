"""
Whether the compiled PPOClip learns what SB3's PPO learns: real tasks, ten seeds each.

    python -m benchmarks.learning [--jobs 2]     # runs what is missing in the results, an hour, then reports
    python -m benchmarks.learning --report       # reports only

The score of a run is the mean return of the last 100 training episodes, as in section 6.1 of the paper; intervals are Welch's.
Runs are appended to benchmarks/results/learning.csv as they end, so that an interrupted call goes on where it was.
"""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import runs
from benchmarks.paper.statistics import probability_of_improvement, welch_interval
from benchmarks.provenance import origin

RESULTS = Path(__file__).parent / "results" / "learning.csv"
ENVS = ("Hopper-v4", "HalfCheetah-v4")
ALGORITHMS = ("SB3 PPO", "PPOClip")
SEEDS = range(10)
TIMESTEPS = 300_000
PACKAGES = ("stable-baselines3", "torch", "gymnasium", "mujoco", "numpy")
PLANNED = [(algorithm, env, seed) for seed in SEEDS for env in ENVS for algorithm in ALGORITHMS]


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
    return {
        "algorithm": algorithm,
        "env": env,
        "seed": seed,
        "timesteps": model.num_timesteps,
        "episodes": len(returns),
        "score": round(float(np.mean(returns)), 3),
        "seconds": round(time.perf_counter() - start, 1),
        **origin(PACKAGES),
    }


def report(results: Path = RESULTS) -> None:
    """Print the table."""
    scores = runs.scores(runs.load(results))
    print(
        f"| task, {TIMESTEPS} timesteps | SB3's PPO | PPOClip(compile=True) | difference (95% interval) | P(PPOClip > SB3) |"
    )
    print("|---|---|---|---|---|")
    for env in ENVS:
        theirs, ours = (scores.get(env, {}).get(algorithm, np.array([])) for algorithm in ALGORITHMS)
        if min(len(theirs), len(ours)) < 2:
            continue
        difference, low, high = welch_interval(ours, theirs)
        probability = probability_of_improvement(ours[None], theirs[None])
        means = " | ".join(f"{x.mean():.0f} ± {x.std(ddof=1):.0f} ({len(x)} seeds)" for x in (theirs, ours))
        print(f"| {env} | {means} | {difference:+.0f} ({low:+.0f} to {high:+.0f}) | {probability:.2f} |")


def main() -> None:
    """Run and report."""
    runs.command(__doc__, RESULTS, train, PLANNED, report)


if __name__ == "__main__":
    main()
