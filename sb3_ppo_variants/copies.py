"""
Copies of policies. SB3 evaluates a policy less often than this package, and a custom one may keep whatever it sees: it is a
copy that is evaluated where SB3 does not.
"""

import copy
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_ppo_variants.module_state import is_left_alone
from sb3_ppo_variants.stand_in import is_of_library


def frozen_copy(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    """
    A copy of the policy with parameters of its own, without gradients, and without optimizer.

    :param policy: the policy to copy; unchanged
    :return: the copy
    """
    return _copy(policy, shared=()).requires_grad_(False)


def working_copy(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    """
    A copy of the policy with the same parameters, so that it is still the policy after an update, and without optimizer.

    :param policy: the policy to copy; unchanged
    :return: the copy
    """
    return _copy(policy, shared=policy.parameters())


def _copy(policy: ActorCriticPolicy, shared: Iterable[Any]) -> ActorCriticPolicy:
    memo: dict[int, Any] = {id(policy.optimizer): None, **{id(part): part for part in shared}}
    for value in (value for module in policy.modules() for value in vars(module).values()):
        # SB3 keeps the parameters of the last call in a distribution: two policies need two, but their contents may be shared
        if isinstance(value, Distribution):
            memo[id(value)] = copy.copy(value)
        # deepcopy fails on tensors with a history, such as outputs that a module keeps
        elif is_left_alone(value) or (isinstance(value, th.Tensor) and not value.is_leaf):
            memo[id(value)] = value
    return copy.deepcopy(policy, memo)


@contextmanager
def evaluation_copy(policy: ActorCriticPolicy) -> Iterator[ActorCriticPolicy]:
    """
    A policy in evaluation mode, without gradients, for passes that leave no trace in the policy and in random generators.

    :param policy: any policy
    :return: a working copy; the policy itself where it cannot be copied, or where all of its modules are SB3's and torch's,
        which keep nothing in evaluation mode
    """
    training = policy.training
    with th.no_grad(), same_random_numbers(policy.device):
        # Not of the copy alone: it may hold functions that refer to the policy
        policy.set_training_mode(False)
        try:
            yield policy if all(map(is_of_library, policy.modules())) else _working_copy_if_possible(policy)
        finally:
            policy.set_training_mode(training)


def _working_copy_if_possible(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    # Whatever a custom class may raise
    with suppress(Exception):
        return working_copy(policy)
    return policy


@contextmanager
def same_random_numbers(device: th.device) -> Iterator[None]:
    """
    Put the global random generators of torch, NumPy and Python back afterwards.

    :param device: the device, besides the CPU, whose generator counts
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with th.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
