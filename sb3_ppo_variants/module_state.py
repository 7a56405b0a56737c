"""
What modules keep besides parameters, buffers and modules: numbers, arrays, statistics, random generators, functions.

Compiled code takes it for constant, so that it must not change unnoticed, and an update that is undone puts it back. Both look
into plain containers, statistics and objects of the user's own classes, and not far: others may lead anywhere.
"""

import dataclasses
import functools
import hashlib
import random
import sys
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.wrappers.utils import RunningMeanStd as GymnasiumRunningMeanStd
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_ppo_variants.stand_in import MODULE_METHODS, is_of_library

OF_EVERY_MODULE = frozenset(vars(nn.Module()))
CONSTANTS = (bool, int, float, complex, str, bytes, type(None), th.device, th.dtype)
STATISTICS = (RunningMeanStd, GymnasiumRunningMeanStd)
GENERATORS: dict[type, Callable[[Any], Any]] = {
    th.Generator: th.Generator.get_state,
    np.random.Generator: lambda generator: generator.bit_generator.state,
    np.random.RandomState: np.random.RandomState.get_state,
    random.Random: random.Random.getstate,
}
# Whose classes are not the user's own
LIBRARIES = sys.stdlib_module_names | {"gymnasium", "numpy", "sb3_contrib", "stable_baselines3", "torch"}
# What a module may refer to, but what is no part of it
OTHERS = (gym.Env, VecEnv, BaseAlgorithm, BaseCallback, Logger)
# How far to look, into how long containers, and into arrays of how many bytes
DEPTH = 4
LONGEST = 1000
LARGEST = 2**22
# What is called while a policy is evaluated
POLICY_METHODS = ("evaluate_actions", "extract_features", "get_distribution", "predict_values", "_get_action_dist_from_latent")
DISTRIBUTION_METHODS = ("proba_distribution", "log_prob", "entropy")


def own_attributes(module: nn.Module) -> dict[str, Any]:
    """
    What a module keeps besides what every module has: parameters, buffers, modules, hooks.

    :param module: any module
    :return: values by name
    """
    return {name: value for name, value in vars(module).items() if name not in OF_EVERY_MODULE}


def is_left_alone(value: Any) -> bool:
    """
    Whether something that a module holds is no part of it, or too large to be copied and compared in each update.

    :param value: any value
    :return: whether it is
    """
    if isinstance(value, np.ndarray):
        return value.nbytes > LARGEST
    if isinstance(value, th.Tensor):
        return value.numel() * value.element_size() > LARGEST
    return isinstance(value, OTHERS)


def custom_attributes(policy: ActorCriticPolicy) -> dict[str, Hashable]:
    """
    The attributes of a policy's custom modules, as they are now.

    :param policy: any policy
    :return: what ``frozen`` makes of them, by name
    """
    return {
        f"{prefix}.{name}".lstrip("."): frozen(value)
        for prefix, module in policy.named_modules()
        if not is_of_library(module)
        for name, value in own_attributes(module).items()
    }


def fingerprint(policy: ActorCriticPolicy) -> tuple[Hashable, ...]:
    """
    What the evaluation of a policy depends on besides parameters and buffers, as far as this module looks.

    :param policy: any policy
    :return: something that is equal as long as that is
    """
    distribution = policy.action_dist
    methods = [getattr(type(policy), name, None) for name in POLICY_METHODS]
    methods += [getattr(type(distribution), name, None) for name in DISTRIBUTION_METHODS]
    of_distribution = [
        (name, frozen(value)) for name, value in vars(distribution).items() if callable(value) or isinstance(value, CONSTANTS)
    ]
    of_modules = [
        (
            prefix,
            type(module),
            *(getattr(type(module), name, None) for name in MODULE_METHODS),
            *((name, frozen(value)) for name, value in own_attributes(module).items()),
        )
        for prefix, module in policy.named_modules()
    ]
    return (type(distribution), *methods, *of_distribution, *of_modules)


def frozen(value: Any, depth: int = DEPTH) -> Hashable:
    """
    Make something hashable of a value that is equal as long as the value is the same, as far as this module looks into it.

    :param value: a value of any type
    :param depth: how far to look
    :return: that
    """
    if is_left_alone(value):
        return _Same(value)
    if isinstance(value, CONSTANTS):
        return (type(value), value)
    if isinstance(value, np.generic):
        return (type(value), value.tobytes())
    for kind, state_of in GENERATORS.items():
        if isinstance(value, kind):
            return (kind, frozen(state_of(value)))
    # Those of the policy are trained
    if depth == 0 or isinstance(value, nn.Parameter):
        return type(value).__qualname__
    if isinstance(value, th.Tensor):
        # Not every kind of tensor can be converted, and one that shares its memory cannot be resized any more
        with suppress(TypeError, RuntimeError):
            return frozen(value.detach().clone().numpy(force=True))
    if isinstance(value, functools.partial):
        return (_Same(value.func), frozen(value.args, depth - 1), frozen(value.keywords, depth - 1))
    if isinstance(value, list | tuple | deque | set | frozenset | dict) and len(value) <= LONGEST:
        parts = [frozen(part, depth - 1) for part in value]
        if isinstance(value, dict):
            parts += [frozen(part, depth - 1) for part in value.values()]
        return (type(value), frozenset(parts) if isinstance(value, set | frozenset) else tuple(parts))
    if type(value) is np.ndarray and not value.dtype.hasobject:
        return (value.shape, value.dtype.str, hashlib.blake2b(value.tobytes()).digest())
    if _may_be_looked_into(value):
        fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
        # Some dataclasses have no __dict__
        slots = {field.name: getattr(value, field.name, None) for field in fields}
        return (type(value), frozen(slots | getattr(value, "__dict__", {}), depth))
    return _Same(value)


def _may_be_looked_into(value: Any) -> bool:
    if isinstance(value, type | nn.Module | Distribution):
        return False
    # Other objects of libraries may lead anywhere, and may change for reasons of their own
    is_of_user = hasattr(value, "__dict__") and type(value).__module__.partition(".")[0] not in LIBRARIES
    return is_of_user or dataclasses.is_dataclass(value) or isinstance(value, (*STATISTICS, SimpleNamespace))


class _Same:
    """Equal to that of the same object only."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)
