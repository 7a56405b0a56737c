"""
SB3's PPO beside PPOClip, PPOFixedKL and PPOKLPen on small environments, several seeds each.

    python benchmarks/compare_sb3.py [--seeds 3]

Prints the mean evaluation return with a 95% interval over the seeds (Student's t), and the speed of training as a ratio to
SB3's PPO of the same seed, run just before it in the same process. Exits with 1 if ``PPOClip(compile=False)`` does not
compute bit for bit what SB3's PPO computes, or if an algorithm does not learn.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from scipy import stats
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule

from sb3_ppo_variants import PPOClip, PPOFixedKL, PPOKLPen


@dataclass(frozen=True)
class Task:
    """
    A task and the hyperparameters that every algorithm gets.

    :param env: its id
    :param n_envs: number of environments
    :param timesteps: length of a training
    :param learned: smallest mean return that counts as learned
    :param kwargs: hyperparameters of SB3's PPO for it, from RL Zoo's ppo.yml, without its clip range
    """

    env: str
    n_envs: int
    timesteps: int
    learned: float
    kwargs: dict[str, Any]


TASKS = [
    # A random policy gets about 20, the best 500; 195 is what counts as solved in the task's first version
    Task(
        env="CartPole-v1",
        n_envs=8,
        timesteps=50_000,
        learned=195,
        kwargs={
            "n_steps": 32,
            "batch_size": 256,
            "gae_lambda": 0.8,
            "gamma": 0.98,
            "n_epochs": 20,
            "learning_rate": LinearSchedule(1e-3, 0.0, 1.0),
        },
    ),
    # A random policy gets about -1200, a good one about -170
    Task(
        env="Pendulum-v1",
        n_envs=4,
        timesteps=60_000,
        learned=-500,
        kwargs={"n_steps": 1024, "gamma": 0.9, "learning_rate": 1e-3, "use_sde": True, "sde_sample_freq": 4},
    ),
]

ALGORITHMS: dict[str, tuple[type[OnPolicyAlgorithm], dict[str, Any]]] = {
    "SB3 PPO": (PPO, {}),
    "PPOClip(compile=False)": (PPOClip, {"compile": False}),
    "PPOFixedKL": (PPOFixedKL, {}),
    "PPOKLPen": (PPOKLPen, {}),
}


def train(algorithm: str, task: Task, seed: int) -> tuple[OnPolicyAlgorithm, float]:
    """
    Train a model.

    :param algorithm: name of the algorithm
    :param task: the task
    :param seed: the seed
    :return: the model and the seconds that ``learn`` took
    """
    cls, own = ALGORITHMS[algorithm]
    env = make_vec_env(task.env, n_envs=task.n_envs, seed=seed)
    model = cls("MlpPolicy", env, seed=seed, device="cpu", **{**task.kwargs, **own})
    start = time.perf_counter()
    model.learn(task.timesteps)
    return model, time.perf_counter() - start


def evaluate(model: OnPolicyAlgorithm, task: Task, seed: int) -> float:
    """
    Evaluate a model.

    :param model: the model
    :param task: the task
    :param seed: seed of the training; the evaluation gets another
    :return: mean return over 20 episodes
    """
    env = make_vec_env(task.env, n_envs=1, seed=1_000_000 + seed)
    mean_return = evaluate_policy(model, env, n_eval_episodes=20, deterministic=True)[0]
    return float(mean_return)  # type: ignore[arg-type]


def interval(values: list[float]) -> tuple[float, float]:
    """
    95% confidence interval of the mean.

    :param values: one value per seed
    :return: lower and upper end
    """
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def same_parameters(model: OnPolicyAlgorithm, other: OnPolicyAlgorithm) -> bool:
    """
    Whether two models are the same bit for bit.

    :param model: a model
    :param other: another
    :return: whether all parameters are equal
    """
    pairs = zip(model.policy.parameters(), other.policy.parameters(), strict=True)
    return all(th.equal(parameter, other_parameter) for parameter, other_parameter in pairs)


def compare(task: Task, seeds: range) -> list[str]:
    """
    Run all algorithms on a task and print a table.

    :param task: the task
    :param seeds: the seeds
    :return: what is wrong, if anything
    """
    failures = []
    returns: dict[str, list[float]] = {algorithm: [] for algorithm in ALGORITHMS}
    speeds: dict[str, list[float]] = {algorithm: [] for algorithm in ALGORITHMS}
    for seed in seeds:
        models, seconds = {}, {}
        for algorithm in ALGORITHMS:
            models[algorithm], seconds[algorithm] = train(algorithm, task, seed)
        for algorithm, model in models.items():
            returns[algorithm].append(evaluate(model, task, seed))
            speeds[algorithm].append(seconds["SB3 PPO"] / seconds[algorithm])
        if not same_parameters(models["SB3 PPO"], models["PPOClip(compile=False)"]):
            failures.append(f"{task.env}, seed {seed}: PPOClip(compile=False) is not bit for bit SB3's PPO")

    print(f"\n{task.env}, {task.timesteps} timesteps, seeds {seeds.start} to {seeds.stop - 1}")
    print(f"| {'algorithm':22} | return | 95% interval     | speed / SB3's, median (min to max) |")
    print(f"|{'-' * 24}|--------|------------------|------------------------------------|")
    for algorithm in ALGORITHMS:
        mean, (low, high) = statistics.mean(returns[algorithm]), interval(returns[algorithm])
        speed = speeds[algorithm]
        spread = f"{statistics.median(speed):.2f} ({min(speed):.2f} to {max(speed):.2f})"
        print(f"| {algorithm:22} | {mean:6.0f} | {low:6.0f} to {high:6.0f} | {spread:34} |")
        if mean < task.learned:
            failures.append(f"{task.env}: {algorithm} has not learned: mean return {mean:.0f} < {task.learned:.0f}")
    return failures


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (at least 2)")
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error(f"--seeds must be at least 2, but is {args.seeds}")
    # Sums over several threads are not reproducible bit for bit
    th.set_num_threads(1)
    failures = [failure for task in TASKS for failure in compare(task, range(args.seeds))]
    print("\n" + ("\n".join(failures) or "Parity with SB3's PPO holds, and every algorithm has learned."))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
