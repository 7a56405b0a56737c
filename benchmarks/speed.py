"""
How fast training is: SB3's PPO, contrib's MaskablePPO and RecurrentPPO, SBX's PPO (if it is installed) and this package's
algorithms.

    python -m benchmarks.speed                # the table: some minutes
    python -m benchmarks.speed --whole-runs   # also learn(20_000) and learn(1_000_000), imports and compilation included
    python -m benchmarks.speed --ablations    # what each technique buys

Each contestant trains in a process of its own, with one torch thread, and they take turns, rollout and update by rollout and
update, so that a machine whose speed drifts is fair to all. The ratio to SB3's PPO (to MaskablePPO with masks, to RecurrentPPO
with an LSTM) is that within each turn; its median is reported with the smallest and the largest. The first update, which
compiles, is shown on its own and does not count, nor does the second. ``environment`` is the floor: what the environment's own
steps take, with random actions.

Writes benchmarks/results/speed.csv, of which `benchmarks.speed_report` makes speed.md and speed.svg.
"""

import argparse
import csv
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch as th

from benchmarks import speed_report
from benchmarks.provenance import current_commit

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Case:
    """
    What is trained.

    :param env: id of the environment
    :param n_envs: number of environments
    :param updates: number of rollouts and updates in a turn
    :param normalize: whether VecNormalize is used
    :param policy: name of the policy
    :param kwargs: hyperparameters
    :param actions: name and argument of the action space of an environment that costs nothing, with action masks
    :param has_floor: whether the network is what takes the time, so that it takes part alone, too
    :param further: names of further contestants
    """

    env: str
    n_envs: int = 1
    updates: int = 1
    normalize: bool = False
    policy: str = "MlpPolicy"
    kwargs: dict[str, Any] = field(default_factory=dict)
    actions: tuple[str, Any] | None = None
    has_floor: bool = False
    further: tuple[str, ...] = ()


def masked(kind: str, argument: Any, n_envs: int, n_steps: int, has_floor: bool = False) -> Case:
    """A case with action masks."""
    kwargs = {"n_steps": n_steps, "batch_size": 64, "n_epochs": 10}
    return Case("masks", n_envs, policy="MaskableMlpPolicy", kwargs=kwargs, actions=(kind, argument), has_floor=has_floor)


# The Zoo's settings
CARTPOLE = {"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "learning_rate": 1e-3}
PENDULUM = {"n_steps": 1024, "gamma": 0.9, "learning_rate": 1e-3, "use_sde": True, "sde_sample_freq": 4}
# Of RecurrentPPO, what its cases with MuJoCo have in common
LSTM_64 = {"n_steps": 256, "batch_size": 128, "policy_kwargs": {"lstm_hidden_size": 64}}

CASES = {
    "HalfCheetah-v4, 1 env": Case("HalfCheetah-v4"),
    "HalfCheetah-v4, 8 envs": Case("HalfCheetah-v4", n_envs=8, kwargs={"n_steps": 256}),
    "HalfCheetah-v4, VecNormalize": Case("HalfCheetah-v4", normalize=True),
    "HalfCheetah-v4, Dict of two parts": Case("HalfCheetah-v4", policy="MultiInputPolicy"),
    "Hopper-v4, 1 env": Case("Hopper-v4"),
    "CartPole-v1": Case("CartPole-v1", n_envs=8, updates=20, kwargs=CARTPOLE),
    "Pendulum-v1, gSDE": Case("Pendulum-v1", n_envs=4, kwargs=PENDULUM),
    "images 84x84x4, 8 envs": Case(
        "images",
        n_envs=8,
        policy="CnnPolicy",
        kwargs={"n_steps": 32, "batch_size": 256, "n_epochs": 4, "learning_rate": 2.5e-4, "ent_coef": 0.01},
        has_floor=True,
    ),
    "masks, Discrete(12), 8 envs": masked("Discrete", 12, n_envs=8, n_steps=256),
    "masks, Discrete(1400), 8 envs": masked("Discrete", 1400, n_envs=8, n_steps=128, has_floor=True),
    "masks, MultiDiscrete([7, 7, 7, 4]), 8 envs": masked("MultiDiscrete", [7, 7, 7, 4], n_envs=8, n_steps=256),
    "masks, MultiBinary(339), 16 envs": masked("MultiBinary", 339, n_envs=16, n_steps=16),
    # RecurrentPPO is fast where no episode starts in a rollout: four of them have a whole episode, of 1,000 steps
    "LSTM, HalfCheetah-v4, 8 envs": Case(
        "HalfCheetah-v4",
        n_envs=8,
        updates=4,
        policy="MlpLstmPolicy",
        kwargs=LSTM_64,
        further=("PPOClip, sequences of 16", "PPOClip, sequences of 32"),
    ),
    "LSTM, Hopper-v4, 8 envs": Case("Hopper-v4", n_envs=8, policy="MlpLstmPolicy", kwargs=LSTM_64),
    # contrib's default of 256 units
    "LSTM of 256, CartPole-v1": Case("CartPole-v1", n_envs=8, updates=4, policy="MlpLstmPolicy", kwargs=CARTPOLE),
    "LSTM, PendulumNoVel-v1, gSDE": Case(
        "PendulumNoVel-v1",
        n_envs=4,
        normalize=True,
        policy="MlpLstmPolicy",
        kwargs={
            **PENDULUM,
            "batch_size": 128,
            "policy_kwargs": {
                "ortho_init": False,
                "activation_fn": th.nn.ReLU,
                "lstm_hidden_size": 64,
                "enable_critic_lstm": True,
                "net_arch": {"pi": [64], "vf": [64]},
            },
        },
    ),
}

CONTESTANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "SB3 PPO": ("stable_baselines3", "PPO", {}),
    "MaskablePPO": ("sb3_contrib", "MaskablePPO", {}),
    "RecurrentPPO": ("sb3_contrib", "RecurrentPPO", {}),
    "SBX PPO": ("sbx", "PPO", {}),
    "PPOClip, reference": ("sb3_ppo_variants", "PPOClip", {"compile": False}),
    "PPOClip": ("sb3_ppo_variants", "PPOClip", {"compile": True}),
    "PPOKLPen": ("sb3_ppo_variants", "PPOKLPen", {"compile": True}),
    "PPOFixedKL": ("sb3_ppo_variants", "PPOFixedKL", {"compile": True}),
    "PPOClip, sequences of 16": ("sb3_ppo_variants", "PPOClip", {"compile": True, "sequence_length": 16}),
    "PPOClip, sequences of 32": ("sb3_ppo_variants", "PPOClip", {"compile": True, "sequence_length": 32}),
}

# Takes part in cases with has_floor
FLOOR = "floor: the network alone"

PRODUCTS = "matrix products as they are written"
# What "PPOClip" is without one of its techniques: attributes of the package that are replaced
LANES = "sb3_ppo_variants.fast"
ABLATIONS: dict[str, list[str]] = {
    "all techniques": [],
    "rollouts without the NumPy policy": ["numpy_policy"],
    "and without the straight-line one": ["numpy_policy", "straight"],
    "SB3's step of DummyVecEnv": ["env"],
    "SB3's RolloutBuffer.add": ["buffer"],
    "SB3's computation of the advantages": ["advantages"],
    "no fast lane": ["env", "buffer", "advantages", "straight"],
    PRODUCTS: ["transposition"],
    "the traced step interpreted, not compiled": ["inductor"],
    "reference path, all techniques": ["reference"],
    "reference path, SB3's optimizer": ["reference", "adam"],
    "reference path, no fast lane": ["reference", "env", "buffer", "advantages", "straight", "adam"],
}


def switch_off(techniques: list[str]) -> dict[str, Any]:
    """
    Replace techniques by what SB3 does.

    :param techniques: names of fast lanes, or of other techniques
    :return: arguments for ``PPOClip``
    """
    from sb3_ppo_variants import optimizer
    from sb3_ppo_variants.compiled import inductor, numpy_policy

    for technique in techniques:
        if technique == "numpy_policy":
            numpy_policy.NumpyPolicy.supports = staticmethod(lambda policy: False)  # type: ignore[method-assign]
        elif technique == "transposition":
            for module in (inductor, optimizer):
                setattr(module, "is_quicker_transposed", lambda n_rows, n_columns: False)  # noqa: B010
        elif technique == "inductor":
            inductor.compile_graph = lambda graph, arguments: lambda arguments: graph(*arguments)
        elif technique != "reference":
            importlib.import_module(f"{LANES}.{technique}").lane = lambda *objects: None  # type: ignore[attr-defined]
    return {"compile": "reference" not in techniques}


def make_env(case: Case) -> Any:
    """
    The vectorized environment of a case.

    :param case: the case
    :return: the environment
    """
    import gymnasium as gym
    import numpy as np
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    from benchmarks.masked_env import Free

    if "NoVel" in case.env:
        import rl_zoo3.import_envs  # noqa: F401

    class Images(gym.Env):
        """Images that cost nothing, so that the convolutions are what is measured."""

        observation_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
        action_space = gym.spaces.Discrete(6)

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            self.images = self.np_random.integers(0, 256, (16, 4, 84, 84), dtype=np.uint8)
            self.steps = 0
            return self.images[0], {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            self.steps += 1
            return self.images[self.steps % 16], float(action == self.steps % 6), False, self.steps == 200, {}

    class TwoParts(gym.ObservationWrapper[Any, Any, Any]):
        """A dictionary of positions and velocities."""

        def __init__(self, env: gym.Env[Any, Any]) -> None:
            super().__init__(env)
            parts = [gym.spaces.Box(-np.inf, np.inf, (n,), np.float64) for n in (8, 9)]
            self.observation_space = gym.spaces.Dict(dict(zip(("positions", "velocities"), parts, strict=True)))

        def observation(self, observation: Any) -> Any:
            return {"positions": observation[:8], "velocities": observation[8:]}

    single: Any = Images if case.env == "images" else case.env
    if case.actions is not None:
        kind, argument = case.actions
        single = partial(Free, getattr(gym.spaces, kind)(argument))
    wrapper = TwoParts if case.policy == "MultiInputPolicy" else None
    env = make_vec_env(single, n_envs=case.n_envs, seed=0, wrapper_class=wrapper)
    return VecNormalize(env) if case.normalize else env


def worker(case: Case, contestant: str) -> None:
    """
    Train a contestant, turn by turn: each line on standard input starts a turn, whose times are printed as a line of JSON. The
    end of the input is the end of the training.

    :param case: the case
    :param contestant: its name
    """
    import numpy as np

    turn = network_alone(case) if contestant == FLOOR else training_turn(case, contestant)
    # The floor: the environments' own steps, with random actions
    plain = make_env(replace(case, normalize=False))
    plain.reset()
    actions = [np.stack([plain.action_space.sample() for _ in range(case.n_envs)]) for _ in range(200)]
    for _ in sys.stdin:
        times = next(turn)
        start = time.perf_counter()
        for action in actions:
            for single, one in zip(plain.envs, action, strict=True):
                _, _, terminated, truncated, _ = single.step(one)
                if terminated or truncated:
                    single.reset()
        times["environment_us"] = (time.perf_counter() - start) / len(actions) / case.n_envs * 1e6
        times["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(times), flush=True)


def training_turn(case: Case, contestant: str) -> Iterator[dict[str, float]]:
    """
    The turns of a training.

    :param case: the case
    :param contestant: its name
    :return: for each turn, microseconds per timestep of rollouts and updates; the first turn is the first update alone
    """
    if contestant in ABLATIONS:
        module, name, kwargs = "sb3_ppo_variants", "PPOClip", switch_off(ABLATIONS[contestant])
    else:
        module, name, kwargs = CONTESTANTS[contestant]
    policy = "MlpPolicy" if name == "MaskablePPO" else case.policy
    make_model = getattr(importlib.import_module(module), name)
    model = make_model(policy, make_env(case), seed=0, device="cpu", **case.kwargs, **kwargs)
    steps = model.n_steps * case.n_envs
    times: dict[str, list[float]] = {"collect_rollouts": [], "train": []}

    def timed(method: str) -> None:
        original = getattr(model, method)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = original(*args, **kwargs)
            times[method].append(time.perf_counter() - start)
            return result

        setattr(model, method, wrapper)

    timed("collect_rollouts")
    timed("train")
    reset = True
    updates = 1
    while True:
        for durations in times.values():
            durations.clear()
        model.learn(updates * steps, reset_num_timesteps=reset)
        yield {
            "rollout_us": sum(times["collect_rollouts"]) / updates / steps * 1e6,
            "update_us": sum(times["train"]) / updates / steps * 1e6,
        }
        reset, updates = False, case.updates


def network_alone(case: Case) -> Iterator[dict[str, float]]:
    """
    The turns of the floor: the passes of the networks that no PPO can do without, and nothing else.

    :param case: the case
    :return: for each turn, microseconds per timestep of rollouts and updates
    """
    step_of_rollout, step_of_update = (convolutions if case.policy == "CnnPolicy" else matrix_products)(case)
    steps = case.kwargs["n_steps"] * case.n_envs
    while True:
        start = time.perf_counter()
        for _ in range(case.kwargs["n_steps"]):
            step_of_rollout()
        between = time.perf_counter()
        for _ in range(case.kwargs["n_epochs"] * steps // case.kwargs["batch_size"]):
            step_of_update()
        yield {"rollout_us": (between - start) / steps * 1e6, "update_us": (time.perf_counter() - between) / steps * 1e6}


def convolutions(case: Case) -> tuple[Callable[[], None], Callable[[], None]]:
    """
    The passes of SB3's convolutional network, in the memory layout that is faster on this machine.

    :param case: a case with images
    :return: that of a step of the rollout, and those of a minibatch
    """
    import torch as th
    from stable_baselines3.common.torch_layers import NatureCNN

    space = make_env(case).observation_space
    network = NatureCNN(space)
    batches = [th.rand(n, *space.shape) for n in (case.n_envs, case.kwargs["batch_size"])]
    small, large = (batch.contiguous(memory_format=th.channels_last) for batch in batches)

    @th.no_grad()
    def step_of_rollout() -> None:
        network(small)

    def step_of_update() -> None:
        network.zero_grad()
        network(large).sum().backward()

    return step_of_rollout, step_of_update


def matrix_products(case: Case) -> tuple[Callable[[], None], Callable[[], None]]:
    """
    The matrix products of the two networks of ``MlpPolicy``: no biases, no activations, no loss and no optimizer.

    :param case: a case with vectors
    :return: those of a step of the rollout, and of a minibatch
    """
    import torch as th

    from sb3_ppo_variants import PPOClip
    from sb3_ppo_variants.policies import networks

    policy = PPOClip(case.policy, make_env(case), device="cpu").policy

    def products(n: int, with_backward: bool) -> Callable[[], None]:
        pairs = []
        for network in networks(policy):
            layers = [layer.weight.detach() for layer in network if isinstance(layer, th.nn.Linear)]
            for i, weight in enumerate(layers):
                n_outputs, n_inputs = weight.shape
                inputs, gradient = th.rand(n, n_inputs), th.rand(n, n_outputs)
                pairs.append((inputs, weight.t()))
                if with_backward:
                    pairs.append((gradient.t(), inputs))
                # Nobody needs the gradient of the observations
                if with_backward and i > 0:
                    pairs.append((gradient, weight))
        results = [a @ b for a, b in pairs]

        def step() -> None:
            for (a, b), result in zip(pairs, results, strict=True):
                th.mm(a, b, out=result)

        return step

    return products(case.n_envs, False), products(case.kwargs["batch_size"], True)


def whole_run(contestant: str, timesteps: int) -> dict[str, float]:
    """
    Seconds of a whole training script on HalfCheetah-v4, imports and compilation included.

    :param contestant: its name
    :param timesteps: length of the training
    :return: the seconds
    """
    module, name, kwargs = CONTESTANTS[contestant]
    if module == "sb3_ppo_variants":
        kwargs = {}
    script = (
        f"from {module} import {name}\n"
        f"{name}('MlpPolicy', 'HalfCheetah-v4', seed=0, device='cpu', **{kwargs}).learn({timesteps})"
    )
    with uncompiled_environment() as environment:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, stdout=subprocess.DEVNULL, env=environment)
        return {"seconds": time.perf_counter() - start}


@contextmanager
def uncompiled_environment() -> Iterator[dict[str, str]]:
    """The environment variables of a process with one torch thread for which nothing has been compiled beforehand."""
    with tempfile.TemporaryDirectory() as cache:
        yield {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": cache}


class Worker:
    """
    A process that runs ``worker``.

    :param case: name of the case
    :param contestant: its name
    """

    def __init__(self, case: str, contestant: str) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.speed", "--worker", case, contestant]
        pipe = subprocess.PIPE
        self.name = contestant
        self.stack = ExitStack()
        environment = self.stack.enter_context(uncompiled_environment())
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1, env=environment)

    def turn(self) -> dict[str, float]:
        """
        Let it make a turn.

        :return: its times
        :raises RuntimeError: if it has ended
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        for line in self.process.stdout:
            # Environments and libraries print, too
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.name} ended with exit code {self.process.wait()}")

    def close(self) -> None:
        """End it."""
        self.process.communicate()
        self.stack.close()


class MemoryWatch(threading.Thread):
    """
    Watches the memory of a process and of those that it starts (the C++ compiler), from here to ``stop``.

    :param pid: the process
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process = psutil.Process(pid)
        self.peak_mb = 0.0
        self.stopped = threading.Event()
        self.start()

    def run(self) -> None:
        """Look five times a second."""
        while not self.stopped.wait(0.2):
            total = 0
            # Any of them may have ended meanwhile
            with suppress(psutil.Error):
                for process in [self.process, *self.process.children(recursive=True)]:
                    # Pages that several processes share are divided among them
                    total += process.memory_full_info().pss
            self.peak_mb = max(self.peak_mb, total / 2**20)

    def stop(self) -> float:
        """
        Stop watching.

        :return: the peak in MiB
        """
        self.stopped.set()
        self.join()
        return self.peak_mb


def take_turns(case: str, names: list[str], n_turns: int) -> list[dict[str, dict[str, float]]]:
    """
    Measure contestants in turn.

    :param case: name of the case
    :param names: names of the contestants
    :param n_turns: number of turns that count; two of warm-up, of which the first compiles, come before
    :return: for each turn, what was measured of each contestant
    """
    workers = [Worker(case, name) for name in names]
    first = {}
    for worker in workers:
        watch = MemoryWatch(worker.process.pid)
        first[worker.name] = {**worker.turn(), "compiling_mb": watch.stop()}
    turns = [{worker.name: worker.turn() for worker in workers} for _ in range(n_turns + 1)][1:]
    for worker in workers:
        worker.close()
    steps = CASES[case].n_envs * CASES[case].kwargs.get("n_steps", 2048)
    for turn in turns:
        for name, times in turn.items():
            times["first_update_s"] = first[name]["update_us"] * steps / 1e6
            times["compiling_mb"] = first[name]["compiling_mb"]
    return turns


def contestants(case: str) -> list[str]:
    """
    Who takes part in a case.

    :param case: name of the case
    :return: names of the contestants
    """
    floor = [FLOOR] if case in CASES and CASES[case].has_floor else []
    policy = CASES[case].policy if case in CASES else ""
    for kind, peer in (("Maskable", "MaskablePPO"), ("Lstm", "RecurrentPPO")):
        if kind in policy:
            return [peer, "PPOClip, reference", "PPOClip", "PPOKLPen", *CASES[case].further, *floor]
    names = [name for name in CONTESTANTS if CONTESTANTS[name][0] != "sb3_contrib" and "sequences" not in name]
    # It has no policy for dictionaries
    has_sbx = importlib.util.find_spec("sbx") is not None and policy != "MultiInputPolicy"
    names = [name for name in names if name != "SBX PPO" or has_sbx] + floor
    # The KL variants do the same work everywhere
    return names if case == "HalfCheetah-v4, 1 env" else [name for name in names if "KL" not in name]


def ablate(repetitions: int) -> None:
    """
    Print what each technique buys, measured by switching it off, and write it to benchmarks/results/ablations.md.

    :param repetitions: number of turns
    """
    lines = ["| | rollout | update | times as fast as SB3 (min to max) |", "|---|---|---|---|"]
    # Networks with few inputs and outputs
    for case, names in (("HalfCheetah-v4, 1 env", list(ABLATIONS)), ("CartPole-v1", ["all techniques", PRODUCTS])):
        turns = take_turns(case, ["SB3 PPO", *names], repetitions)
        for name in turns[0]:
            row = summary(case, name, turns)
            ratio = f"{row['ratio']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
            lines.append(f"| {case}: {name} | {row['rollout_us']:.0f} us | {row['update_us']:.0f} us | {ratio} |")
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "ablations.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def measure(cases: list[str], repetitions: int, whole_runs: bool) -> None:
    """
    Measure, printing and writing each case as it comes.

    :param cases: names of the cases
    :param repetitions: number of turns
    :param whole_runs: whether to measure whole runs too
    """
    rows: list[dict[str, Any]] = []
    for case in cases:
        turns = take_turns(case, contestants(case), repetitions)
        rows += [summary(case, name, turns) for name in turns[0]]
        print_rows(rows, case)
        write(rows)
    if whole_runs:
        for timesteps, n_turns in ((20_000, min(repetitions, 5)), (1_000_000, 1)):
            case = f"learn({timesteps:_})"
            names = [name for name in contestants("") if name != "PPOClip, reference"]
            turns = [{name: whole_run(name, timesteps) for name in names} for _ in range(n_turns)]
            rows += [summary(case, name, turns) for name in names]
            print_rows(rows, case)
            write(rows)


def summary(case: str, name: str, turns: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """
    A row of the table.

    :param case: name of the case
    :param name: name of the contestant
    :param turns: what was measured in each turn
    :return: medians, and the ratio to the first contestant, SB3's PPO or one of contrib, in each turn
    """

    def total(times: dict[str, float]) -> float:
        return times["seconds"] if "seconds" in times else times["rollout_us"] + times["update_us"]

    peer = next(iter(turns[0]))
    ratios = [total(turn[peer]) / total(turn[name]) for turn in turns]
    medians = {key: statistics.median(turn[name][key] for turn in turns) for key in turns[0][name]}
    return {
        "case": case,
        "contestant": name,
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        **medians,
    }


def print_rows(rows: list[dict[str, Any]], case: str) -> None:
    """
    Print the rows of a case.

    :param rows: all rows so far
    :param case: name of the case
    """
    print(speed_report.details([row for row in rows if row["case"] == case]), flush=True)


def write(rows: list[dict[str, Any]]) -> None:
    """
    Write the results, their tables and the chart. Cases that have not been measured stay as they were.

    :param rows: the rows
    """
    packages: tuple[str, ...] = ("sb3_ppo_variants", "stable-baselines3", "torch", "gymnasium", "mujoco", "numpy")
    packages += ("sbx-rl",) if importlib.util.find_spec("sbx") is not None else ()
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, one torch thread, Python {platform.python_version()}"
    origin = {"versions": versions, "machine": machine, "commit": current_commit()}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "speed.csv"
    by_case: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    if path.is_file():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                by_case.setdefault(row["case"], []).append(row)
    for case in {row["case"] for row in rows}:
        by_case[case] = [{**row, **origin} for row in rows if row["case"] == case]
    merged = [row for own in by_case.values() for row in own]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(key for row in merged for key in row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(merged)
    speed_report.write(RESULTS)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=9, help="number of turns")
    parser.add_argument("--whole-runs", action="store_true", help="also measure whole training scripts")
    parser.add_argument("--ablations", action="store_true", help="measure what each technique buys instead")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help="only these")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(CASES[args.worker[0]], args.worker[1])
        return
    if args.ablations:
        ablate(args.repetitions)
    else:
        measure(args.cases, args.repetitions, args.whole_runs)


if __name__ == "__main__":
    main()
