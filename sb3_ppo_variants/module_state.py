"""
What custom modules keep besides parameters, buffers and modules: numbers, arrays, statistics, random generators, functions.

SB3 evaluates a policy less often than this package, so that it must be as before after each pass that SB3 does not make; and
compiled code takes it for constant, so that it must not change unnoticed. Both look into plain containers, running statistics
and objects of the user's own classes, of moderate size and depth, but not into others: those may lead anywhere. Functions, and
objects of other classes, count by identity.
"""

import dataclasses
import functools
import hashlib
import random
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.wrappers.utils import RunningMeanStd as GymnasiumRunningMeanStd
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_ppo_variants.stand_in import MODULE_METHODS, is_of_library

OF_EVERY_MODULE = frozenset(vars(nn.Module()))
CONSTANTS = (bool, int, float, complex, str, bytes, type(None), th.device, th.dtype)
STATISTICS = (RunningMeanStd, GymnasiumRunningMeanStd)
# Whose classes are not the user's own
LIBRARIES = sys.stdlib_module_names | {"gymnasium", "numpy", "sb3_contrib", "stable_baselines3", "torch"}
# How far to look into containers, into how long ones, and into arrays of how many bytes; and into how much at the most
DEPTH = 4
LONGEST = 1000
LARGEST = 2**20
MOST_VALUES = 5000
MOST_BYTES = 2**22
# What is called while a policy is evaluated
POLICY_METHODS = ("evaluate_actions", "extract_features", "get_distribution", "predict_values", "_get_action_dist_from_latent")
DISTRIBUTION_METHODS = ("proba_distribution", "log_prob", "entropy")


class State:
    """
    What a policy's custom modules keep, as it is now.

    :param policy: any policy
    """

    def __init__(self, policy: nn.Module) -> None:
        self.modules = [(name, module) for name, module in policy.named_modules() if not is_of_library(module)]
        self.attributes = [_own_attributes(module) for _, module in self.modules]
        self.contents = Contents(value for attributes in self.attributes for value in attributes.values())

    def put_back(self) -> str | None:
        """
        Put back what has changed since.

        :return: the name of something that has, or ``None``
        """
        changed = self.contents.put_back()
        for (prefix, module), before in zip(self.modules, self.attributes, strict=True):
            now = _own_attributes(module)
            for name in before.keys() | now.keys():
                if name in before and name in now and _is_same(now[name], before[name]):
                    continue
                if name not in before:
                    del vars(module)[name]
                # It may have been registered since
                elif not any(name in parts for parts in (module._modules, module._parameters, module._buffers)):
                    vars(module)[name] = before[name]
                changed = changed or f"{prefix}.{name}".lstrip(".")
        return changed


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in OF_EVERY_MODULE}


class Contents:
    """
    The contents of arrays, containers, statistics and random generators, as they are now.

    :param values: objects of any type; others are left alone
    """

    def __init__(self, values: Iterable[Any]) -> None:
        # A function for each that puts it back where it has changed, and says whether it has
        self._steps: list[tuple[str, Callable[[], bool]]] = []
        self._seen: set[int] = set()
        self._n_values = self._n_bytes = 0
        for value in values:
            self._remember(value, DEPTH)

    def put_back(self) -> str | None:
        """
        Put back what has changed since.

        :return: a word for something that has, or ``None``
        """
        changed = [kind for kind, step in self._steps if step()]
        return changed[0] if changed else None

    def _remember(self, value: Any, depth: int) -> None:
        self._n_values += 1
        if depth == 0 or id(value) in self._seen or self._n_values > MOST_VALUES:
            return
        step: Callable[[], bool] | None = None
        inside: Iterable[Any] = ()
        if type(value) in (tuple, list, deque, set, dict, OrderedDict, defaultdict) and len(value) <= LONGEST:
            inside = value.values() if isinstance(value, dict) else value
            if type(value) is not tuple:
                step = _restoring_container(value)
        elif isinstance(value, STATISTICS) or _is_of_user(value):
            inside, step = vars(value).values(), _restoring_container(vars(value))
        elif type(value) is np.ndarray and value.flags.writeable and self._affords(value):
            step = functools.partial(_restore_array, value, value.copy())
        elif type(value) is th.Tensor and value.layout is th.strided and not value.is_inference() and self._affords(value):
            step = functools.partial(restore_tensor, value, value.detach().clone())
        elif isinstance(value, th.Generator):
            step = _restoring_generator(value.get_state, value.set_state)
        elif isinstance(value, np.random.Generator):
            bits = value.bit_generator
            step = _restoring_generator(lambda: bits.state, lambda state: setattr(bits, "state", state))
        elif isinstance(value, np.random.RandomState):
            step = _restoring_generator(value.get_state, value.set_state)
        elif isinstance(value, random.Random):
            step = _restoring_generator(value.getstate, value.setstate)
        if step is not None:
            self._steps.append((f"a {type(value).__name__}", step))
            self._seen.add(id(value))
        for part in inside:
            self._remember(part, depth - 1)

    def _affords(self, value: np.ndarray | th.Tensor) -> bool:
        if value.nbytes > LARGEST:
            return False
        self._n_bytes += value.nbytes
        return self._n_bytes <= MOST_BYTES


def _is_of_user(value: Any) -> bool:
    """Whether a value is an object of a class of the user's own, but for classes, modules and environments."""
    return (
        type(value).__module__.partition(".")[0] not in LIBRARIES
        and type(getattr(value, "__dict__", None)) is dict
        and not isinstance(value, type | nn.Module | gym.Env | BaseAlgorithm | BaseCallback | VecEnv)
    )


def _restoring_container(value: Any) -> Callable[[], bool]:
    before = list(value.items()) if isinstance(value, dict) else list(value)

    def put_back() -> bool:
        now = list(value.items()) if isinstance(value, dict) else list(value)
        if len(now) == len(before) and all(map(_is_same, now, before)):
            return False
        value.clear()
        (value.extend if isinstance(value, list | deque) else value.update)(before)
        return True

    return put_back


def _is_same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    # Numbers and tuples may have been made anew
    if isinstance(one, CONSTANTS):
        return bool(one == other)
    return isinstance(one, tuple) and len(one) == len(other) and all(map(_is_same, one, other))


def _restore_array(value: np.ndarray, before: np.ndarray) -> bool:
    if value.dtype == before.dtype and value.tobytes() == before.tobytes():
        return False
    np.copyto(value, before)
    return True


@th.no_grad()
def restore_tensor(value: th.Tensor, before: th.Tensor) -> bool:
    """
    Give a tensor back its shape and content, if they have changed: it may lie in memory that must not be written.

    :param value: the tensor
    :param before: what it was
    :return: whether it had changed
    """
    if value.shape == before.shape and bool(((value == before) | ((value != value) & (before != before))).all()):
        return False
    value.resize_(before.shape).copy_(before)
    return True


def _restoring_generator(get: Callable[[], Any], set_: Callable[[Any], Any]) -> Callable[[], bool]:
    before = get()

    def put_back() -> bool:
        if _is_equal(get(), before):
            return False
        set_(before)
        return True

    return put_back


def _is_equal(one: Any, other: Any) -> bool:
    """Whether two states of a generator are the same."""
    if isinstance(one, dict):
        return all(_is_equal(part, other[name]) for name, part in one.items())
    if isinstance(one, tuple):
        return all(map(_is_equal, one, other))
    return bool(np.array_equal(one, other))


def fingerprint(policy: ActorCriticPolicy) -> tuple[Hashable, ...]:
    """
    What the evaluation of a policy depends on besides its tensors, as far as this module looks. Tensors that are neither
    parameters nor buffers are left out: a trace refuses them.

    :param policy: any policy
    :return: something that is equal as long as that is
    """
    distribution, frozen = policy.action_dist, _Frozen()
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
            *((name, frozen(value)) for name, value in _own_attributes(module).items()),
        )
        for prefix, module in policy.named_modules()
    ]
    return (type(distribution), *methods, *of_distribution, *of_modules)


class _Frozen:
    """Makes of values something hashable that is equal as long as they are: as far as it looks, and else the same objects."""

    def __init__(self) -> None:
        self.n_values = self.n_bytes = 0

    def __call__(self, value: Any, depth: int = DEPTH) -> Hashable:
        self.n_values += 1
        if isinstance(value, CONSTANTS):
            return (type(value), value)
        if isinstance(value, np.generic):
            return (type(value), value.tobytes())
        if depth == 0 or isinstance(value, th.Tensor):
            return type(value).__qualname__
        if self.n_values > MOST_VALUES:
            return _Same(value)
        if isinstance(value, (*STATISTICS, SimpleNamespace)):
            return self(vars(value), depth)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            # Some have no vars
            fields = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
            return self(fields | getattr(value, "__dict__", {}), depth)
        if isinstance(value, functools.partial):
            return (_Same(value.func), self(value.args, depth - 1), self(value.keywords, depth - 1))
        if isinstance(value, list | tuple | deque | set | frozenset | dict) and len(value) <= LONGEST:
            parts = [self(part, depth - 1) for part in value]
            if isinstance(value, dict):
                parts += [self(part, depth - 1) for part in value.values()]
            return (type(value), frozenset(parts) if isinstance(value, set | frozenset) else tuple(parts))
        if type(value) is np.ndarray and not value.dtype.hasobject and self._affords(value):
            return (value.shape, value.dtype.str, hashlib.blake2b(value.tobytes()).digest())
        if _is_of_user(value):
            # It may hold more than is looked into
            return (_Same(value), self(vars(value), depth - 1))
        return _Same(value)

    def _affords(self, value: np.ndarray) -> bool:
        if value.nbytes > LARGEST:
            return False
        self.n_bytes += value.nbytes
        return self.n_bytes <= MOST_BYTES


class _Same:
    """Equal to that of the same object only."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)
