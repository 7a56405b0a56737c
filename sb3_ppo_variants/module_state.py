"""
What modules hold besides parameters, buffers and modules: numbers, functions, arrays, statistics, random generators. Passes
through a policy that SB3 does not make must leave it as it is, and compiled code takes it for constant.
"""

import random
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from torch import nn

OF_EVERY_MODULE = frozenset(vars(nn.Module()))
# How far to look into the objects that a module holds: the array in its statistics, the generator in its list
DEPTH = 3
# What an object may be called by while a policy is evaluated
POLICY_METHODS = ("evaluate_actions", "extract_features", "get_distribution", "predict_values", "_get_action_dist_from_latent")
DISTRIBUTION_METHODS = ("proba_distribution", "log_prob", "entropy")


def remember(modules: Sequence[nn.Module]) -> Callable[[], None]:
    """
    Remember what modules keep besides parameters and buffers: numbers, arrays, statistics, random generators.

    :param modules: the modules
    :return: a function that puts it back
    """
    steps: list[Callable[[], Any]] = []
    seen: set[int] = set()
    for module in modules:
        own = {name: value for name, value in vars(module).items() if name not in OF_EVERY_MODULE}
        steps.append(partial(vars(module).update, own))
        for value in own.values():
            _remember(value, DEPTH, steps, seen)

    def put_back() -> None:
        for step in steps:
            step()

    return put_back


def _remember(value: Any, depth: int, steps: list[Callable[[], Any]], seen: set[int]) -> None:
    is_part_of_sb3 = isinstance(value, nn.Module | th.optim.Optimizer | Distribution | spaces.Space)
    if depth == 0 or id(value) in seen or is_part_of_sb3 or isinstance(value, type | str | int | float | None):
        return
    seen.add(id(value))
    inside: Sequence[Any] = ()
    match value:
        case th.Tensor():
            tensor = value.detach()
            steps.append(partial(tensor.copy_, tensor.clone()))
        case np.ndarray() if value.flags.writeable:
            steps.append(partial(np.copyto, value, value.copy()))
        case th.Generator():
            steps.append(partial(value.set_state, value.get_state()))
        case np.random.Generator():
            generator = value.bit_generator
            steps.append(partial(setattr, generator, "state", generator.state))
        case np.random.RandomState():
            steps.append(partial(value.set_state, value.get_state()))
        case random.Random():
            steps.append(partial(value.setstate, value.getstate()))
        case list() | deque():
            inside = list(value)
            steps += [value.clear, partial(value.extend, inside)]
        case set():
            steps += [value.clear, partial(value.update, set(value))]
        case dict():
            inside = list(value.values())
            steps += [value.clear, partial(value.update, dict(value))]
        case _ if hasattr(value, "__dict__") and not callable(value):
            inside = list(vars(value).values())
            steps.append(partial(vars(value).update, dict(vars(value))))
    for part in inside:
        _remember(part, depth - 1, steps, seen)


def fingerprint(policy: ActorCriticPolicy) -> tuple[Hashable, ...]:
    """
    What the evaluation of a policy depends on besides its tensors. Tensors that are neither parameters nor buffers are left
    out: a trace refuses them.

    :param policy: any policy
    :return: something that is equal as long as that is
    """
    distribution = policy.action_dist
    methods = [getattr(type(policy), name, None) for name in POLICY_METHODS]
    methods += [getattr(type(distribution), name, None) for name in DISTRIBUTION_METHODS]
    of_distribution = [(name, _Same(value)) for name, value in vars(distribution).items() if callable(value)]
    of_modules = [
        (
            prefix,
            type(module),
            type(module).forward,
            *((name, _frozen(value)) for name, value in vars(module).items() if name not in OF_EVERY_MODULE),
        )
        for prefix, module in policy.named_modules()
    ]
    return (type(distribution), *methods, *of_distribution, *of_modules)


def _frozen(value: Any) -> Hashable:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list | tuple | deque):
        return (type(value), *map(_frozen, value))
    if isinstance(value, dict):
        return (dict, *((name, _frozen(part)) for name, part in value.items()))
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    if isinstance(value, np.generic):
        return type(value), value.item()
    if isinstance(value, RunningMeanStd):
        return _frozen(vars(value))
    return _Same(value) if callable(value) else type(value).__qualname__


class _Same:
    """Equal to that of the same object only."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)
