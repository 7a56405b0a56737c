"""
Whether the compiled PPOClip with LSTM policies learns what contrib's RecurrentPPO learns, and what memory and masks buy: ten
seeds each.

    python -m benchmarks.learning_recurrent [--jobs 2]     # runs what is missing in the results, some hours, then reports
    python -m benchmarks.learning_recurrent --report       # reports only

The trainings are those of the RL Zoo: in its tasks without velocities, with the hyperparameters of its ppo_lstm, which
hyperparams/ has too; in the tasks of benchmarks/recall.py, with those of benchmarks/recall.yml. The score of a run is the mean
return of 50 episodes of the trained policy, without exploration.

Two algorithms count as equivalent if the difference of their mean scores is shown to be less than a tenth of the range of the
returns, which was set before any run of PPOClip: by two one-sided tests at 5%, that is, if the 90% interval of the difference
(Welch's) lies within that margin. PPOKLPen has another objective, and is shown.

Runs are appended to benchmarks/results/learning_recurrent.csv as they end, so that an interrupted call goes on where it was.
"""

import argparse
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import runs
from benchmarks.paper.cells import format_equivalence
from benchmarks.paper.statistics import welch_interval
from benchmarks.provenance import origin

RESULTS = Path(__file__).parent / "results" / "learning_recurrent.csv"
# The Zoo's file of hyperparameters of the tasks of recall
CONFIG = Path(__file__).parent / "recall.yml"
SEEDS = range(10)
PACKAGES = ("stable-baselines3", "sb3-contrib", "rl-zoo3", "torch", "gymnasium", "numpy")
# Of the range of the returns
MARGIN = 0.1
EPISODES = 50
N_EVAL_ENVS = 5

# The name in the Zoo, and a part of the name of the task's policy that is left out
ALGORITHMS = {
    "RecurrentPPO": ("ppo_lstm", ""),
    "PPOClip": ("ppo_clip", ""),
    "PPOKLPen": ("ppo_klpen", ""),
    "PPOClip without memory": ("ppo_clip", "Lstm"),
    "PPOClip without masks": ("ppo_clip", "Maskable"),
}


class Task(NamedTuple):
    """
    What is trained.

    :param lowest: mean return of random actions
    :param highest: return of the best policy
    :param policy: name of the policy, if the task is one of recall
    """

    lowest: float
    highest: float
    policy: str = ""

    def algorithms(self) -> list[str]:
        """Names of those that take part: without memory and without masks where it is these that the task is about."""
        left_out = {"Lstm", "Maskable"} - {part for part in ("Lstm", "Maskable") if part in self.policy}
        names = [name for name, (_, without) in ALGORITHMS.items() if without not in left_out]
        return [name for name in names if name != "RecurrentPPO" or "Maskable" not in self.policy]


TASKS = {
    "CartPoleNoVel-v1": Task(22, 500),
    "PendulumNoVel-v1": Task(-1_240, -150),
    "MountainCarContinuousNoVel-v0": Task(-33, 95),
    "Recall-v0": Task(1 / 3, 1, "MlpLstmPolicy"),
    "MaskedRecall-v0": Task(1 / 3, 1, "MaskableMlpLstmPolicy"),
}
PLANNED = [(name, env, seed) for seed in SEEDS for env, task in TASKS.items() for name in task.algorithms()]


def train(algorithm: str, env: str, seed: int) -> dict[str, Any]:
    """
    A run.

    :param algorithm: name of the algorithm
    :param env: id of the task
    :param seed: the seed
    :return: a row of the results
    """
    import contextlib
    import io
    import tempfile
    import time

    import rl_zoo3.import_envs  # noqa: F401
    import torch as th
    from rl_zoo3 import exp_manager
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import sync_envs_normalization

    import benchmarks.recall  # noqa: F401
    from sb3_ppo_variants import zoo

    zoo.register()
    th.set_num_threads(1)
    # Masks that a policy without does not use
    warnings.filterwarnings("ignore", message=".*takes no action masks, but the environment gives some")
    start = time.perf_counter()
    algo, without = ALGORITHMS[algorithm]
    options: dict[str, Any] = {} if algo == "ppo_lstm" else {"compile": True}
    if without:
        options["policy"] = TASKS[env].policy.replace(without, "")
    if without == "Lstm":
        options["policy_kwargs"] = {}
    config = str(CONFIG) if TASKS[env].policy else None
    # The Zoo writes folders and prints settings
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        manager = exp_manager.ExperimentManager(
            argparse.Namespace(), algo, env, folder, config=config, hyperparams=options, seed=seed, verbose=0, device="cpu"
        )
        model, _ = manager.setup_experiment()  # type: ignore[misc]
        model.learn(manager.n_timesteps)
        eval_env = manager.create_envs(N_EVAL_ENVS, eval_env=True)
    # Other episodes than those of the training
    eval_env.seed(1_000 + seed)
    sync_envs_normalization(model.get_env(), eval_env)  # type: ignore[arg-type]
    score, deviation = (round(float(x), 3) for x in evaluate_policy(model, eval_env, EPISODES))  # type: ignore[arg-type]
    for vec_env in (model.get_env(), eval_env):
        vec_env.close()  # type: ignore[union-attr]
    return {
        "algorithm": algorithm,
        "env": env,
        "seed": seed,
        "timesteps": model.num_timesteps,
        "score": score,
        "deviation": deviation,
        "seconds": round(time.perf_counter() - start, 1),
        **origin(PACKAGES),
    }


def report(results: Path = RESULTS) -> None:
    """Print the table."""
    rows = runs.load(results)
    of_tasks, timesteps = runs.scores(rows), {row["env"]: int(row["timesteps"]) for row in rows}
    columns = ("PPOClip - RecurrentPPO (90% interval)", f"equivalent within {MARGIN:.0%} of the range")
    print(f"| task, timesteps | {' | '.join((*ALGORITHMS, *columns))} |")
    print("|---" * (1 + len(ALGORITHMS) + len(columns)) + "|")
    for env, task in TASKS.items():
        scores = {name: of_tasks.get(env, {}).get(name, np.array([])) for name in ALGORITHMS}
        if min(len(scores[name]) for name in task.algorithms()) < 2:
            continue
        digits = 2 if task.highest == 1 else 1
        cells = [f"{x.mean():.{digits}f} ± {x.std(ddof=1):.{digits}f}" if len(x) else "" for x in scores.values()]
        if "RecurrentPPO" in task.algorithms():
            difference, low, high = welch_interval(scores["PPOClip"], scores["RecurrentPPO"], level=0.9)
            margin = MARGIN * (task.highest - task.lowest)
            interval = f"{difference:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
            cells += [interval, format_equivalence(low, high, margin, digits)]
        else:
            cells += ["", ""]
        print(f"| {env}, {timesteps[env]:_} | {' | '.join(cells)} |")


def main() -> None:
    """Run and report."""
    runs.command(__doc__, RESULTS, train, PLANNED, report)


if __name__ == "__main__":
    main()
