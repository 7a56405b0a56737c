"""What custom modules keep is put back, where that is safe, and its changes are noticed."""

import dataclasses
import functools
import logging
import queue
import random
from collections import deque
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.running_mean_std import RunningMeanStd
from test_parity import Mean, space_env

from sb3_ppo_variants.module_state import LARGEST, LONGEST, MOST_BYTES, MOST_VALUES, State, fingerprint


class Holder(th.nn.Module):
    """A custom module that holds one thing."""

    def __init__(self, value):
        super().__init__()
        self.value = value


def generators():
    numpy = np.random.default_rng(0)
    return {
        "torch": (th.Generator(), lambda generator: th.rand(1, generator=generator).item()),
        "numpy": (numpy, lambda generator: generator.random()),
        "mt19937": (np.random.Generator(np.random.MT19937(0)), lambda generator: generator.random()),
        "legacy": (np.random.RandomState(0), lambda generator: generator.rand()),
        "python": (random.Random(0), lambda generator: generator.random()),
    }


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x], lambda x: (x,), lambda x: {"a": [x]}])
@pytest.mark.parametrize("kind", generators())
def test_random_generators(kind, wrap):
    generator, next_number = generators()[kind]
    state = State(Holder(wrap(generator)))
    assert state.put_back() is None
    first = next_number(generator)
    assert state.put_back() is not None
    assert next_number(generator) == first


CHANGES = {
    "number": (lambda: 1, lambda module: setattr(module, "value", 2)),
    "array": (lambda: np.zeros(3), lambda module: module.value.__setitem__(1, 2.0)),
    "tensor": (lambda: th.zeros(3), lambda module: module.value.add_(1)),
    "data of a tensor": (lambda: th.zeros(3), lambda module: module.value.data.add_(1)),
    "shape of a tensor": (lambda: th.zeros(3), lambda module: module.value.resize_(5).zero_()),
    "other tensor": (lambda: th.zeros(3), lambda module: setattr(module, "value", module.value + 1)),
    "list": (lambda: [1, 2], lambda module: module.value.append(3)),
    "deque": (lambda: deque([1, 2], maxlen=2), lambda module: module.value.append(3)),
    "set": (lambda: {1, 2}, lambda module: module.value.add(3)),
    "dictionary": (lambda: {"a": 1}, lambda module: module.value.update(a=2)),
    "nested": (lambda: {"a": [np.zeros(2)]}, lambda module: module.value["a"][0].fill(1)),
    "statistics": (lambda: RunningMeanStd(shape=(2,)), lambda module: module.value.update(np.ones((3, 2)))),
    "object of the user's own": (lambda: [Mean()], lambda module: module.value[0].update(1.0)),
}


def plain(value):
    """Something to compare."""
    if isinstance(value, RunningMeanStd | Mean):
        return plain(vars(value))
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | deque):
        return [type(value), *map(plain, value)]
    return value.tolist() if isinstance(value, np.ndarray | th.Tensor) else value


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_put_back_and_named(change):
    make, alter = CHANGES[change]
    module = Holder(make())
    value = module.value
    outer = th.nn.ModuleDict({"part": module})
    state = State(outer)
    assert state.put_back() is None
    alter(module)
    assert plain(module.value) != plain(make())
    changed = state.put_back()
    assert changed == "part.value" or changed.startswith("a ")
    assert module.value is value
    assert plain(module.value) == plain(make())


class Env(gym.Env):
    """An environment of the user's own."""

    n_steps = 0


class ReadOnly(dict):
    def _refuse(self, *args, **kwargs):
        raise TypeError("read only")

    clear = update = __setitem__ = _refuse


def test_what_is_not_to_be_touched(tmp_path):
    np.save(tmp_path / "table.npy", np.ones(4, dtype=np.float32))
    with pytest.warns(UserWarning, match="not writable"):
        read_only = th.from_numpy(np.load(tmp_path / "table.npy", mmap_mode="r"))
    items = queue.Queue()
    values = [read_only, th.ones(1).expand(8), ReadOnly(a=1), logging.getLogger("mine"), items, SimpleNamespace(n=0), Env()]
    state = State(th.nn.ModuleList(map(Holder, values)))
    # Others may change these meanwhile
    items.put(1)
    values[-2].n = values[-1].n_steps = 1
    new = logging.getLogger("a logger of its own")
    assert state.put_back() is None
    assert items.qsize() == 1
    assert values[-2].n == values[-1].n_steps == 1
    assert logging.getLogger("a logger of its own") is new


def test_equal_values_are_no_change():
    module = Holder((0.5, th.Size([2]), th.device("cpu")))
    module.nan, module.infinite = th.tensor([float("nan")]), np.array([np.inf])
    state = State(module)
    module.value = (0.25 + 0.25, th.zeros(2).shape, th.zeros(1).device)
    module.nan.mul_(2)
    assert state.put_back() is None


def test_attributes_that_come_and_go():
    module = Holder(1)
    state = State(module)
    module.new = 2
    del module.value
    assert state.put_back() in ("new", "value")
    assert module.value == 1
    assert not hasattr(module, "new")


def test_large_things_are_left_alone():
    large, many = np.zeros(LARGEST // 8 + 1), [[0.0] * LONGEST for _ in range(MOST_VALUES // LONGEST + 2)]
    arrays = [np.zeros(LARGEST // 8) for _ in range(MOST_BYTES // LARGEST + 1)]
    with th.inference_mode():
        inference = th.zeros(2)
    for value, change in (
        (large, lambda: large.fill(1)),
        ([0.0] * (LONGEST + 1), lambda: None),
        (many, lambda: many[-1].append(1.0)),
        (arrays, lambda: arrays[-1].fill(1)),
        (inference, lambda: None),
    ):
        policy = with_extractor(value)
        state = State(th.nn.ModuleList([Holder(value)]))
        change()
        assert state.put_back() is None
        assert fingerprint(policy) == fingerprint(policy)
    # The others are not, whatever is beside them
    state = State(Holder([np.zeros(2 * MOST_BYTES), *arrays]))
    arrays[0].fill(2)
    assert state.put_back() is not None
    assert arrays[0][0] == 0


def test_parts_that_are_registered_meanwhile():
    module = Holder(None)
    state = State(module)
    del module.value
    module.value = th.nn.Linear(1, 1)
    state.put_back()
    assert isinstance(module.value, th.nn.Linear)


@dataclasses.dataclass
class Options:
    scale: float = 1.0


@dataclasses.dataclass(slots=True)
class Slots:
    scale: float = 1.0


def with_extractor(value):
    policy = PPO("MlpPolicy", space_env("box", "box")()).policy
    policy.features_extractor.value = value
    return policy


NOTICED = {
    "dataclass": (Options(), lambda value: setattr(value, "scale", 2.0)),
    "namespace": (SimpleNamespace(scale=1.0), lambda value: setattr(value, "scale", 2.0)),
    "partial": (functools.partial(th.clamp, min=[0.0]), lambda value: value.keywords["min"].__setitem__(0, 1.0)),
    "slots": (Slots(), lambda value: setattr(value, "scale", 2.0)),
    "set": ({1}, lambda value: value.add(2)),
    "statistics": (RunningMeanStd(), lambda value: value.update(np.ones(3))),
}


@pytest.mark.parametrize("name", NOTICED)
def test_fingerprint_notices(name):
    value, change = NOTICED[name]
    policy = with_extractor(value)
    before = fingerprint(policy)
    assert before == fingerprint(policy)
    assert hash(before) == hash(fingerprint(policy))
    change(value)
    assert before != fingerprint(policy)


def test_fingerprint_of_odd_values():
    cyclic: dict = {}
    cyclic["self"] = cyclic
    large = np.zeros(LARGEST)
    for value in (cyclic, np.float32("nan"), large, [0.0] * (LONGEST + 1), th.zeros(2), np.array([None])):
        policy = with_extractor(value)
        assert fingerprint(policy) == fingerprint(policy)
    # Numbers of the distribution count
    before = fingerprint(policy)
    policy.action_dist.temperature = 2.0
    assert fingerprint(policy) != before
