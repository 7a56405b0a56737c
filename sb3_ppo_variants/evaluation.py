"""Policies evaluated where SB3 does not evaluate them, without a trace."""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_ppo_variants.module_state import State, restore_tensor
from sb3_ppo_variants.stand_in import is_of_library


def frozen_copy(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    """
    A copy of the policy without gradients and without optimizer.

    :param policy: the policy to copy; unchanged
    :return: the copy
    """
    # deepcopy fails on the noise matrices of gSDE, which are not leaves of the graph. Two policies need two distribution
    # objects, as SB3 keeps the parameters of the last call there, but their contents may be shared.
    memo: dict[int, Any] = {
        id(policy.optimizer): None,
        id(policy.action_dist): copy.copy(policy.action_dist),
    }
    return copy.deepcopy(policy, memo).requires_grad_(False)


@contextmanager
def evaluation_mode(policy: ActorCriticPolicy) -> Iterator[None]:
    """
    The policy in evaluation mode, without gradients; modes, buffers, random generators and what custom modules keep otherwise
    are as before afterwards.

    :param policy: any policy
    """
    training = policy.training
    state, buffers = State(policy), Buffers(policy)
    # A custom policy may write to parameters, as to a moving average of others
    is_custom = not all(map(is_of_library, policy.modules()))
    parameters = [(parameter, parameter.detach().clone()) for parameter in policy.parameters()] if is_custom else []
    with th.no_grad(), same_random_numbers(policy.device):
        policy.set_training_mode(False)
        try:
            yield
        finally:
            policy.set_training_mode(training)
            buffers.put_back()
            state.put_back()
            for parameter, before in parameters:
                if not th.equal(parameter, before):
                    parameter.copy_(before)


class Buffers:
    """
    The buffers of a policy, as they are now: those, too, that its ``state_dict`` leaves out.

    :param policy: any policy
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.buffers = [
            (module, name, buffer, buffer.clone())
            for module in policy.modules()
            for name, buffer in module.named_buffers(recurse=False)
        ]

    def put_back(self) -> None:
        """Put back what has changed since; modules may have put other tensors in the places of their buffers."""
        for module, name, buffer, before in self.buffers:
            restore_tensor(buffer, before)
            setattr(module, name, buffer)


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
