"""
Whether the compiled PPOClip with action masks learns what contrib's MaskablePPO learns, and what masks buy: ten seeds each.

    python -m benchmarks.learning_masks [--jobs 2]     # runs what is missing in the results, some minutes, then reports
    python -m benchmarks.learning_masks --report       # reports only

The score of a run is the mean return of its last 40 training episodes. Two algorithms count as equivalent if the difference
of their mean scores is shown to be less than a twentieth of the range of the returns, which was set before any run: by two
one-sided tests at 5%, that is, if the 90% interval of the difference (Welch's) lies within that margin.

Observations are one-hot vectors, as SB3's policies make them anyway: so PPOClip's rollouts are those in NumPy, whose random
draws are other ones, and the runs of a seed differ from the first step.

Runs are appended to benchmarks/results/learning_masks.csv as they end, so that an interrupted call goes on where it was.
"""

import warnings
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import runs
from benchmarks.paper.cells import format_equivalence
from benchmarks.paper.statistics import welch_interval
from benchmarks.provenance import origin

RESULTS = Path(__file__).parent / "results" / "learning_masks.csv"
ALGORITHMS = ("MaskablePPO", "PPOClip", "PPOClip without masks")
# Ten. The eight environments of a run have the seeds from its own on
SEEDS = range(0, 100, 10)
PACKAGES = ("stable-baselines3", "sb3-contrib", "torch", "gymnasium", "numpy")
# Of the range of the returns
MARGIN = 0.05
N_ENVS = 8


class Task(NamedTuple):
    """
    What is trained.

    :param timesteps: length of a training
    :param lowest: return of the worst policy with masks
    :param highest: return of the best policy
    :param kwargs: hyperparameters of all algorithms
    :param arguments: of contrib's environment
    """

    timesteps: int
    lowest: float
    highest: float
    kwargs: dict[str, Any]
    arguments: dict[str, Any]


# An episode has 100 steps, each of which pays 1 for the one right action. Taxi pays -1 for a step, of which there are up to
# 200, and 20 for a passenger; by the shortest ways that makes 7.9, the mean over all states at the start
TASKS = {
    "InvalidActionEnvDiscrete": Task(
        8_192, 0, 100, {"n_steps": 64, "learning_rate": 1e-3}, {"dim": 20, "n_invalid_actions": 10}
    ),
    "InvalidActionEnvMultiDiscrete": Task(
        8_192, 0, 100, {"n_steps": 64, "learning_rate": 1e-3}, {"dims": [4, 3], "n_invalid_actions": 3}
    ),
    "InvalidActionEnvMultiBinary": Task(
        8_192, 0, 100, {"n_steps": 64, "learning_rate": 1e-3}, {"dims": 4, "n_invalid_actions": 2}
    ),
    "Taxi": Task(
        61_440, -200, 7.9, {"n_steps": 128, "batch_size": 256, "gamma": 0.98, "learning_rate": 3e-3, "ent_coef": 0.01}, {}
    ),
}
PLANNED = [(algorithm, env, seed) for seed in SEEDS for env in TASKS for algorithm in ALGORITHMS]


def make_env(env: str, with_method: bool) -> Any:
    """
    One environment.

    :param env: its name
    :param with_method: whether Taxi gives its masks by a method, too, and not only in ``info``
    :return: the environment, with observations that are vectors
    """
    import gymnasium as gym
    from sb3_contrib.common import envs
    from sb3_contrib.common.wrappers import ActionMasker

    if hasattr(envs, env):
        return gym.wrappers.FlattenObservation(getattr(envs, env)(**TASKS[env].arguments))
    # By its name in newer and in older Gymnasium
    name = next(name for name in ("Taxi-v4", "Taxi-v3") if name in gym.registry)
    made: Any = gym.wrappers.FlattenObservation(gym.make(name))
    taxi = made.unwrapped
    return ActionMasker(made, lambda _: taxi.action_mask(taxi.s)) if with_method else made


def train(algorithm: str, env: str, seed: int) -> dict[str, Any]:
    """
    A run.

    :param algorithm: name of the algorithm
    :param env: name of the task
    :param seed: the seed
    :return: a row of the results
    """
    import time

    import torch as th
    from sb3_contrib import MaskablePPO
    from stable_baselines3.common.env_util import make_vec_env

    from sb3_ppo_variants import PPOClip
    from sb3_ppo_variants.compiled.numpy_policy import NumpyPolicy

    th.set_num_threads(1)
    # Masks that a policy without does not use
    warnings.filterwarnings("ignore", message=".*takes no action masks, but the environment gives some")
    start = time.perf_counter()
    task = TASKS[env]
    vec_env = make_vec_env(partial(make_env, env, algorithm == "MaskablePPO"), N_ENVS, seed=seed)
    kwargs = {"seed": seed, "device": "cpu", "stats_window_size": 40, **task.kwargs}
    if algorithm == "MaskablePPO":
        model: Any = MaskablePPO("MlpPolicy", vec_env, **kwargs)
    else:
        policy = "MlpPolicy" if "without" in algorithm else "MaskableMlpPolicy"
        model = PPOClip(policy, vec_env, compile=True, **kwargs)
    model.learn(task.timesteps)
    if algorithm == "PPOClip":
        assert NumpyPolicy.supports(model.policy)
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
    columns = ("difference (90% interval)", f"equivalent within {MARGIN:.0%} of the range", "what masks buy (90% interval)")
    print(f"| task, timesteps | {' | '.join((*ALGORITHMS, *columns))} |")
    print("|---" * (1 + len(ALGORITHMS) + len(columns)) + "|")
    for env, task in TASKS.items():
        theirs, ours, without = (scores.get(env, {}).get(algorithm, np.array([])) for algorithm in ALGORITHMS)
        if min(map(len, (theirs, ours, without))) < 2:
            continue
        means = [f"{x.mean():.1f} ± {x.std(ddof=1):.1f} ({len(x)} seeds)" for x in (theirs, ours, without)]
        (difference, low, high), bought = (welch_interval(ours, others, level=0.9) for others in (theirs, without))
        margin = MARGIN * (task.highest - task.lowest)
        verdict = format_equivalence(low, high, margin)
        intervals = [f"{x[0]:+.1f} ({x[1]:+.1f} to {x[2]:+.1f})" for x in ((difference, low, high), bought)]
        print(f"| {env}, {task.timesteps:_} | {' | '.join((*means, intervals[0], verdict, intervals[1]))} |")


def main() -> None:
    """Run and report."""
    runs.command(__doc__, RESULTS, train, PLANNED, report)


if __name__ == "__main__":
    main()
