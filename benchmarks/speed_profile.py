"""
Where the time of a training goes.

    python -m benchmarks.speed_profile   # some minutes

Functions are timed, each without those that it calls, in processes with one torch thread that take turns. Writes
benchmarks/results/profile.md. Timers add to the times: it is the shares that count.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.speed import RESULTS, measured_with
from benchmarks.speed_cases import CASES, CONTESTANTS, LANES, make_env

RECURRENT = "sb3_contrib.common.recurrent"
BACKWARD_AND_ADAM = [
    ("backward pass", "torch", "Tensor", "backward"),
    ("clipping of the gradient", "torch.nn.utils", "", "clip_grad_norm_"),
    ("Adam", "torch.optim", "Adam", "step"),
]
PPO_CLIP_PARTS = [
    ("environment", "stable_baselines3.common.monitor", "Monitor", "step"),
    ("steps of DummyVecEnv", f"{LANES}.env", "", "_step_dummy"),
    ("advantages", f"{LANES}.advantages", "", "compute_returns_and_advantage"),
    ("rest of the rollout", "sb3_ppo_variants", "PPOClip", "collect_rollouts"),
    ("pi_old, and the KL after the update", "sb3_ppo_variants.policies", "FeedForward", "distributions"),
    ("rest of the update", "sb3_ppo_variants", "PPOClip", "train"),
]
# Functions that are timed: label, module, class (or nothing) and name. One may call another: each is given the time that it
# spends itself.
PARTS = {
    "SB3 PPO": [
        ("environment", "stable_baselines3.common.monitor", "Monitor", "step"),
        ("steps of DummyVecEnv", "stable_baselines3.common.vec_env", "DummyVecEnv", "step_wait"),
        ("policy in the rollout", "stable_baselines3.common.policies", "ActorCriticPolicy", "forward"),
        ("RolloutBuffer.add", "stable_baselines3.common.buffers", "RolloutBuffer", "add"),
        ("advantages", "stable_baselines3.common.buffers", "RolloutBuffer", "compute_returns_and_advantage"),
        ("rest of the rollout", "stable_baselines3", "PPO", "collect_rollouts"),
        ("minibatches", "stable_baselines3.common.buffers", "RolloutBuffer", "_get_samples"),
        ("evaluation of the policy", "stable_baselines3.common.policies", "ActorCriticPolicy", "evaluate_actions"),
        *BACKWARD_AND_ADAM,
        ("rest of the update", "stable_baselines3", "PPO", "train"),
    ],
    "RecurrentPPO": [
        ("environment", "stable_baselines3.common.monitor", "Monitor", "step"),
        ("steps of DummyVecEnv", "stable_baselines3.common.vec_env", "DummyVecEnv", "step_wait"),
        ("policy in the rollout", f"{RECURRENT}.policies", "RecurrentActorCriticPolicy", "forward"),
        ("RecurrentRolloutBuffer.add", f"{RECURRENT}.buffers", "RecurrentRolloutBuffer", "add"),
        ("advantages", "stable_baselines3.common.buffers", "RolloutBuffer", "compute_returns_and_advantage"),
        ("rest of the rollout", "sb3_contrib", "RecurrentPPO", "collect_rollouts"),
        ("minibatches", f"{RECURRENT}.buffers", "RecurrentRolloutBuffer", "_get_samples"),
        ("evaluation of the policy", f"{RECURRENT}.policies", "RecurrentActorCriticPolicy", "evaluate_actions"),
        *BACKWARD_AND_ADAM,
        ("rest of the update", "sb3_contrib", "RecurrentPPO", "train"),
    ],
    "PPOClip, reference": [
        *PPO_CLIP_PARTS,
        ("policy in the rollout", f"{LANES}.straight", "StraightMlp", "act"),
        ("evaluation of the policy", f"{LANES}.straight", "StraightMlp", "evaluate"),
        ("minibatches", "sb3_ppo_variants.loss", "Batch", "select"),
        ("loss", "sb3_ppo_variants.ppo", "", "ppo_loss"),
        ("backward pass", "torch.autograd", "", "grad"),
        ("clipping of the gradient, Adam", f"{LANES}.adam", "ForeachAdam", "__call__"),
    ],
    "PPOClip": [
        *PPO_CLIP_PARTS,
        ("policy in the rollout", "sb3_ppo_variants.compiled.numpy_policy", "NumpyPolicy", "act"),
        ("comparison with SB3's step", "sb3_ppo_variants.compiled.verification", "", "expected_step"),
        ("compiled minibatch steps", "sb3_ppo_variants.compiled.step", "CompiledStep", "run"),
    ],
    "PPOClip, LSTM": [
        *PPO_CLIP_PARTS,
        ("policy in the rollout", "sb3_ppo_variants.compiled.numpy_policy", "NumpyPolicy", "act"),
        ("recurrence, forward", "sb3_ppo_variants.compiled.lstm", "library", "lstm_forward"),
        ("recurrence, backward", "sb3_ppo_variants.compiled.lstm", "library", "lstm_backward"),
        ("rest of the compiled minibatch steps", "sb3_ppo_variants.compiled.step", "CompiledStep", "run"),
    ],
}
LSTM_CASES = ("LSTM, HalfCheetah-v4, 8 envs", "LSTM of 256, CartPole-v1")
# What is measured
PROFILES = (
    ("HalfCheetah-v4, 1 env", "SB3 PPO"),
    ("HalfCheetah-v4, 1 env", "PPOClip"),
    ("HalfCheetah-v4, 8 envs", "SB3 PPO"),
    ("HalfCheetah-v4, 8 envs", "PPOClip, reference"),
    ("HalfCheetah-v4, 8 envs", "PPOClip"),
    *((case, name) for case in LSTM_CASES for name in ("RecurrentPPO", "PPOClip, LSTM")),
)


def profile(case: str, contestant: str, updates: int = 10) -> dict[str, float]:
    """
    Where the time of a contestant goes.

    :param case: name of the case
    :param contestant: its name
    :param updates: number of updates, after the first
    :return: microseconds per timestep of each part
    """
    times = dict.fromkeys((label for label, *_ in PARTS[contestant]), 0.0)
    # Time of the functions that the running one has called
    inner = [0.0]

    def timed(label: str, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            inner.append(0.0)
            start = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                duration = time.perf_counter() - start
                times[label] += duration - inner.pop()
                inner[-1] += duration

        setattr(owner, name, wrapper)

    for label, module, owner, name in PARTS[contestant]:
        place: Any = importlib.import_module(module)
        if owner:
            place = getattr(place, owner)
        # The functions in C++ are attributes of a library, which a function loads
        timed(label, place() if owner == "library" else place, name)
    module, cls, kwargs = CONTESTANTS[contestant.removesuffix(", LSTM")]
    make_model = getattr(importlib.import_module(module), cls)
    model = make_model(CASES[case].policy, make_env(CASES[case]), **CASES[case].kwargs, **kwargs)
    timesteps = model.n_steps * model.n_envs
    model.learn(timesteps)
    for label in times:
        times[label] = 0.0
    model.learn(updates * timesteps, reset_num_timesteps=False)
    return {label: duration / updates / timesteps * 1e6 for label, duration in times.items()}


def print_profile(repetitions: int) -> None:
    """
    Print where the time goes, and write it to benchmarks/results/profile.md.

    :param repetitions: number of turns, of which the medians are taken
    """
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.speed_profile", "--profiled"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    turns: dict[tuple[str, str], list[dict[str, float]]] = {names: [] for names in PROFILES}
    for _ in range(repetitions):
        for names, measured in turns.items():
            output = subprocess.run([*command, *names], check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
            measured.append(json.loads(output.splitlines()[-1]))
    lines = []
    for (case, name), measured in turns.items():
        medians = {label: statistics.median(turn[label] for turn in measured) for label in measured[0]}
        total = sum(medians.values())
        lines += [f"| {case}: {name} | a timestep | share |", "|---|---|---|"]
        lines += [f"| {label} | {duration:.0f} us | {duration / total:.0%} |" for label, duration in medians.items()]
        lines += [f"| all | {total:.0f} us | |", ""]
    text = "\n".join([*lines, f"Measured with {'; '.join(measured_with().values())}.", ""])
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "profile.md").write_text(text, encoding="utf-8")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=9, help="number of turns")
    parser.add_argument("--profiled", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.profiled:
        print(json.dumps(profile(*args.profiled)))
    else:
        print_profile(args.repetitions)


if __name__ == "__main__":
    main()
