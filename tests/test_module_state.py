"""What custom modules keep is put back, and its changes are noticed."""

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

from sb3_ppo_variants.copies import frozen_copy, working_copy
from sb3_ppo_variants.module_state import LARGEST, LONGEST, custom_attributes, fingerprint, frozen
from sb3_ppo_variants.undo import Attributes


class Holder(th.nn.Module):
    """A custom module that holds one thing."""

    def __init__(self, value):
        super().__init__()
        self.value = value


def policy_with(*values):
    policy = PPO("MlpPolicy", space_env("box", "box")()).policy
    policy.holders = th.nn.ModuleList(map(Holder, values))
    return policy


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
    policy = policy_with(wrap(generator))
    state, before = Attributes(policy), custom_attributes(policy)
    assert custom_attributes(policy) == before
    next_number(generator)
    assert custom_attributes(policy) != before
    state.put_back()
    assert custom_attributes(policy) == before


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
    "namespace": (lambda: SimpleNamespace(n=0), lambda module: setattr(module.value, "n", 1)),
    "object": (lambda: [Mean()], lambda module: module.value[0].update(1.0)),
}


def plain(value):
    """Something to compare."""
    if isinstance(value, RunningMeanStd | SimpleNamespace | Mean):
        return plain(vars(value))
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | deque):
        return [type(value), *map(plain, value)]
    return value.tolist() if isinstance(value, np.ndarray | th.Tensor) else value


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_put_back_and_noticed(change):
    make, alter = CHANGES[change]
    policy = policy_with(make())
    module = policy.holders[0]
    value, before = module.value, custom_attributes(policy)
    state = Attributes(policy)
    state.put_back()
    # What has not changed stays the same object
    assert module.value is value
    alter(module)
    assert plain(module.value) != plain(make())
    assert {name for name, _ in before.items() ^ custom_attributes(policy).items()} == {"holders.0.value"}
    state.put_back()
    assert plain(module.value) == plain(make())


def test_what_modules_share_is_still_shared():
    policy = policy_with(*[Mean()] * 2)
    state = Attributes(policy)
    policy.holders[0].value.update(1.0)
    state.put_back()
    assert policy.holders[0].value is policy.holders[1].value
    assert policy.holders[0].value.n_calls == 0


def test_parts_of_the_policy_stay_what_they_are():
    policy = policy_with([])
    value = policy.holders[0].value
    value += [policy.action_net, policy.action_net.weight, policy.action_net.forward]
    state = Attributes(policy)
    value.append(1)
    state.put_back()
    action_net, weight, forward = policy.holders[0].value
    assert action_net is policy.action_net
    assert weight is policy.action_net.weight
    assert forward.__self__ is policy.action_net


class ReadOnly(dict):
    def _refuse(self, *args, **kwargs):
        raise TypeError("read only")

    clear = update = __setitem__ = _refuse


def test_what_is_not_to_be_touched(tmp_path):
    np.save(tmp_path / "table.npy", np.ones(4, dtype=np.float32))
    with pytest.warns(UserWarning, match="not writable"):
        read_only = th.from_numpy(np.load(tmp_path / "table.npy", mmap_mode="r"))
    items = queue.Queue()
    values = [read_only, th.ones(1).expand(8), ReadOnly(a=1), logging.getLogger("mine"), items]
    policy = policy_with(*values)
    state = Attributes(policy)
    # Others may change this meanwhile
    items.put(1)
    state.put_back()
    assert all(holder.value is value for holder, value in zip(policy.holders, values, strict=True))
    assert items.qsize() == 1


class Env(gym.Env):
    """An environment of the user's own."""

    def __init__(self):
        self.n_steps = 0


def test_environments_and_large_arrays_are_left_alone():
    values = [Env(), space_env("box", "box")(), np.zeros(LARGEST + 1, np.int8), th.zeros(LARGEST // 4 + 1)]
    policy = policy_with(*values)
    state, before = Attributes(policy), custom_attributes(policy)
    values[0].n_steps = 1
    values[2][0] = 1
    assert custom_attributes(policy) == before
    state.put_back()
    assert (values[0].n_steps, values[2][0]) == (1, 1)
    for copied in (working_copy(policy), frozen_copy(policy)):
        assert copied.holders[0] is not policy.holders[0]
        assert all(holder.value is value for holder, value in zip(copied.holders, values, strict=True))
    # Smaller ones are not
    policy = policy_with(np.zeros(LARGEST, np.int8))
    before = custom_attributes(policy)
    policy.holders[0].value[0] = 1
    assert custom_attributes(policy) != before
    assert working_copy(policy).holders[0].value is not policy.holders[0].value


def test_equal_values_are_no_change():
    values = ((0.5, th.Size([2]), th.device("cpu")), th.tensor([float("nan")]), np.array([np.inf]))
    others = ((0.25 + 0.25, th.zeros(2).shape, th.zeros(1).device), values[1] * 2, values[2].copy())
    assert frozen(values) == frozen(others)


def test_attributes_that_come_and_go():
    policy = policy_with(1)
    state, module = Attributes(policy), policy.holders[0]
    module.new = 2
    del module.value
    state.put_back()
    assert module.value == 1
    assert not hasattr(module, "new")


def test_parts_that_are_registered_meanwhile():
    policy = policy_with(None)
    state, module = Attributes(policy), policy.holders[0]
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
    "object": (Mean(), lambda value: value.update(1.0)),
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
    with th.inference_mode():
        inference = th.zeros(2)
    tensors = [inference, th.zeros(2, device="meta"), th.zeros(2, dtype=th.bfloat16), th.zeros(2).to_sparse()]
    for value in (cyclic, np.float32("nan"), [0.0] * (LONGEST + 1), np.array([None]), *tensors):
        policy = with_extractor(value)
        assert fingerprint(policy) == fingerprint(policy)
    # Numbers of the distribution count
    before = fingerprint(policy)
    policy.action_dist.temperature = 2.0
    assert fingerprint(policy) != before
