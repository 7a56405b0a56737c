"""
Whether CleanRL's ppo_continuous_action.py learns faster than PPOClip on HalfCheetah-v4, and what makes the difference: ten
seeds each.

    git clone https://github.com/vwxyzjn/cleanrl ../cleanrl
    pip install tyro tensorboard
    CLEANRL=../cleanrl python -m benchmarks.learning_cleanrl [--jobs 2]   # runs what is missing in the results, then reports
    python -m benchmarks.learning_cleanrl --report                        # reports only

All see observations and rewards normalised as by CleanRL's wrappers, which is what VecNormalize does, and all numbers that
both have are equal. Four things differ: PPOClip is run with CleanRL's way of each alone, and of all four. The score of a run
is the mean return of its last 20 training episodes. Chosen before the first run: CleanRL is called faster if the 95% interval
(Welch's) of its mean score minus PPOClip's is above 0, and a change a cause if the interval of its own difference is.

Runs are appended to benchmarks/results/learning_cleanrl.csv as they end, so that an interrupted call goes on where it was.
"""

import contextlib
import os
import runpy
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np

from benchmarks import runs
from benchmarks.paper.experiments import PessimisticValues
from benchmarks.paper.statistics import welch_interval
from benchmarks.provenance import origin
from sb3_ppo_variants import PPOClip

RESULTS = Path(__file__).parent / "results" / "learning_cleanrl.csv"
ENV = "HalfCheetah-v4"
TIMESTEPS = 150_000
SEEDS = range(10)
LAST_EPISODES = 20
# More than there are
MOST_EPISODES = 1_000
PACKAGES = ("stable-baselines3", "torch", "gymnasium", "mujoco", "numpy")

# What CleanRL does otherwise than SB3: arguments of PPOClip, and whether the end at a time limit counts as termination
CHANGES: dict[str, tuple[dict[str, Any], bool]] = {
    "PPOClip": ({}, False),
    "half the weight of the value function's loss": ({"vf_coef": 0.25}, False),
    "value function clipped": ({"clip_range_vf": 0.2}, False),
    "step size annealed to 0": ({"learning_rate": "annealed"}, False),
    "time limit is terminal": ({}, True),
    "all four": ({"vf_coef": 0.25, "clip_range_vf": 0.2, "learning_rate": "annealed"}, True),
}
ALGORITHMS = ("CleanRL", "SB3 PPO", *CHANGES)
PLANNED = [(algorithm, ENV, seed) for seed in SEEDS for algorithm in ALGORITHMS]


class PPOClipWithPessimisticValues(PessimisticValues, PPOClip):
    """Where values are clipped, of both errors the larger one counts, as in CleanRL."""


def train_cleanrl(seed: int) -> tuple[int, list[float]]:
    """
    A run of CleanRL's script as it is, on today's Gymnasium.

    :param seed: the seed
    :return: number of timesteps, and the returns of all episodes
    :raises ValueError: if the environment variable CLEANRL does not name a checkout
    """
    script = Path(os.environ.get("CLEANRL", "")).resolve() / "cleanrl" / "ppo_continuous_action.py"
    if not script.is_file():
        raise ValueError(f"The environment variable CLEANRL must name a checkout of CleanRL, but there is no {script}")
    arguments = ["--seed", str(seed), "--env-id", ENV, "--total-timesteps", str(TIMESTEPS), "--no-cuda"]

    def transformed(env: Any, function: Any) -> Any:
        # Gymnasium 1.0 asks for the space, too
        return transform(env, function, env.observation_space)

    class Restarting(gym.vector.SyncVectorEnv):
        """As in the Gymnasium that the script was written for, the step that ends an episode begins the next one."""

        def __init__(self, env_fns: Any) -> None:
            super().__init__(env_fns, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)

        def step(self, actions: Any) -> Any:
            *result, infos = super().step(actions)
            # Of another form today. The script only logs it
            infos.pop("final_info", None)
            return *result, infos

    transform = gym.wrappers.TransformObservation
    # The script has a wrapper of the same kind, whose returns it only logs
    env = gym.wrappers.RecordEpisodeStatistics(gym.make(ENV), buffer_length=MOST_EPISODES, stats_key="recorded")
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        contextlib.redirect_stdout(None),
        mock.patch.object(sys, "argv", [str(script), *arguments]),
        mock.patch.object(gym, "make", return_value=env),
        mock.patch.object(gym.wrappers, "TransformObservation", transformed),
        mock.patch.object(gym.vector, "SyncVectorEnv", Restarting),
    ):
        timesteps = runpy.run_path(str(script), run_name="__main__")["global_step"]
    return int(timesteps), list(map(float, env.return_queue))


def train(algorithm: str, env: str, seed: int) -> dict[str, Any]:
    """
    A run.

    :param algorithm: one of ``ALGORITHMS``
    :param env: id of the task
    :param seed: the seed
    :return: a row of the results
    """
    import torch as th
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.utils import LinearSchedule
    from stable_baselines3.common.vec_env import VecNormalize

    from sb3_ppo_variants.wrappers import TimeLimitIsTerminal

    th.set_num_threads(1)
    start = time.perf_counter()
    if algorithm == "CleanRL":
        timesteps, returns = train_cleanrl(seed)
    else:
        kwargs, is_terminal = CHANGES.get(algorithm, ({}, False))
        if "learning_rate" in kwargs:
            kwargs = {**kwargs, "learning_rate": LinearSchedule(3e-4, 0.0, 1.0)}
        wrapper = TimeLimitIsTerminal if is_terminal else None
        vec_env = VecNormalize(make_vec_env(ENV, seed=seed, wrapper_class=wrapper))
        options = {"seed": seed, "device": "cpu", "stats_window_size": MOST_EPISODES, **kwargs}
        if algorithm == "SB3 PPO":
            model: Any = PPO("MlpPolicy", vec_env, **options)
        else:
            model = PPOClipWithPessimisticValues("MlpPolicy", vec_env, compile=True, **options)
        timesteps = model.learn(TIMESTEPS).num_timesteps
        returns = [episode["r"] for episode in model.ep_info_buffer]
    return {
        "algorithm": algorithm,
        "env": env,
        "seed": seed,
        "timesteps": timesteps,
        "episodes": len(returns),
        "score": round(float(np.mean(returns[-LAST_EPISODES:])), 3),
        "seconds": round(time.perf_counter() - start, 1),
        **origin(PACKAGES),
    }


def report(results: Path = RESULTS) -> None:
    """Print the table."""
    found = runs.scores(runs.load(results)).get(ENV, {})
    scores = {name: found.get(name, np.array([])) for name in ALGORITHMS}
    print(f"| {ENV}, {TIMESTEPS:_} timesteps | score | minus PPOClip (95% interval) |")
    print("|---|---|---|")
    for name, own in scores.items():
        if min(len(own), len(scores["PPOClip"])) < 2:
            continue
        difference, low, high = welch_interval(own, scores["PPOClip"])
        interval = "" if name == "PPOClip" else f"{difference:+.0f} ({low:+.0f} to {high:+.0f})"
        print(f"| {name} | {own.mean():.0f} ± {own.std(ddof=1):.0f} ({len(own)} seeds) | {interval} |")


def main() -> None:
    """Run and report."""
    runs.command(__doc__, RESULTS, train, PLANNED, report)


if __name__ == "__main__":
    main()
