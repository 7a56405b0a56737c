"""
A contestant of benchmarks/speed.py, in a process of its own.

    python -m benchmarks.speed_worker CASE CONTESTANT
"""

import importlib
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch as th

from benchmarks.speed_cases import ABLATIONS, CASES, CONTESTANTS, FLOOR, Case, make_env, switch_off


def worker(case: Case, contestant: str) -> None:
    """
    Train a contestant, turn by turn: each line on standard input starts a turn, whose times are printed as a line of JSON. The
    end of the input is the end of the training.

    :param case: the case
    :param contestant: its name
    """
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


if __name__ == "__main__":
    worker(CASES[sys.argv[1]], sys.argv[2])
