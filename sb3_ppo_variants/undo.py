"""Updates that make something NaN or infinite are undone."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.utils import _pytree as pytree

from sb3_ppo_variants.loss import APPROX_KL
from sb3_ppo_variants.module_state import frozen, is_left_alone, own_attributes
from sb3_ppo_variants.stand_in import is_of_library


class NonFiniteUpdateError(FloatingPointError, ValueError):
    """
    A policy update made a parameter or a loss NaN or infinite. The model is as it was before that update.

    Also a ``ValueError``, which is what SB3's distributions raise in the same place and what RL Zoo's search prunes.
    """

    @classmethod
    def of(cls, names: list[str], num_timesteps: int) -> "NonFiniteUpdateError":
        """
        The error, with advice.

        :param names: what has become NaN or infinite
        :param num_timesteps: of the training so far
        :return: the error
        """
        if len(names) > 3:
            names = [*names[:3], f"and {len(names) - 3} more"]
        return cls(
            f"The policy update after {num_timesteps} timesteps made these NaN or infinite: {', '.join(names)}. "
            "The model has been put back to its state before that update and can be saved. "
            "Try a smaller learning_rate or n_epochs, a max_grad_norm, or VecNormalize for the rewards."
        )


@contextmanager
def undone_after_errors(algorithm: OnPolicyAlgorithm) -> Iterator["Snapshot"]:
    """
    Undo an update in which there is an error.

    :param algorithm: the algorithm, before the update
    :return: what it was before
    :raises NonFiniteUpdateError: also for torch's errors where a step size does not fit into a float32
    """
    before = Snapshot(algorithm)
    try:
        yield before
    # Also when the user interrupts it: half an update would be saved without its beta
    except BaseException as error:
        before.restore(algorithm)
        if isinstance(error, RuntimeError) and "without overflow" in str(error):
            raise NonFiniteUpdateError.of(["the optimizer's step"], algorithm.num_timesteps) from error
        raise


class Snapshot:
    """
    What an update changes, as it is before.

    :param algorithm: the algorithm, before the update
    """

    def __init__(self, algorithm: OnPolicyAlgorithm) -> None:
        policy = algorithm.policy
        # It may hold other objects than tensors: see nn.Module.get_extra_state
        self.policy = {name: _copy(value) for name, value in policy.state_dict().items()}
        # Those that are not persistent are missing there, and a module may have put other tensors in their places
        self.buffers = [
            (module, name, buffer, buffer.clone())
            for module in policy.modules()
            for name, buffer in module.named_buffers(recurse=False)
        ]
        self.attributes = Attributes(policy)
        # Faster than a deep copy
        self.optimizer = pytree.tree_map(_copy, policy.optimizer.state_dict())
        self.n_updates = algorithm._n_updates

    @th.no_grad()
    def restore(self, algorithm: OnPolicyAlgorithm) -> None:
        """
        Put it back.

        :param algorithm: the algorithm
        """
        algorithm._n_updates = self.n_updates
        algorithm.policy.optimizer.load_state_dict(self.optimizer)
        self.attributes.put_back()
        # Not strict, as buffers may have come in the update
        algorithm.policy.load_state_dict(self.policy, strict=False)
        for module, name, buffer, before in self.buffers:
            # One that has not changed may lie in memory that must not be written
            if not th.equal(buffer, before):
                buffer.resize_(before.shape).copy_(before)
            setattr(module, name, buffer)

    def check(self, algorithm: OnPolicyAlgorithm, epochs: list[th.Tensor], kl: float | None) -> None:
        """
        Check what the update has made of it.

        :param algorithm: the algorithm, after the update
        :param epochs: the values of ``METRICS`` at each step of each epoch, of shape ``(n_steps, n_metrics)``
        :param kl: the KL of the update; ``None`` if it is no part of the loss
        :raises NonFiniteUpdateError: if something has become NaN or infinite
        """
        after = algorithm.policy.state_dict()
        # Buffers such as masks may be infinite by intent, also those that have come in the update
        names = [
            f"policy.{name}"
            for name, before in self.policy.items()
            if isinstance(before, th.Tensor) and th.isfinite(before).all() and not th.isfinite(after.get(name, before)).all()
        ]
        if not th.isfinite(th.cat(epochs)[:, :APPROX_KL]).all():
            names.append("loss")
        if kl is not None and not math.isfinite(kl):
            names.append("KL[pi_old, pi]")
        if names:
            raise NonFiniteUpdateError.of(names, algorithm.num_timesteps)


class Attributes:
    """
    What custom modules keep in attributes, as it is now. What cannot be copied is left alone.

    :param policy: any policy
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.modules = [module for module in policy.modules() if not is_of_library(module)]
        # Where they refer to parts of the policy, their copies do so, too
        parts = [*policy.modules(), *policy.parameters(), *policy.buffers(), policy.optimizer, policy.action_dist]
        memo: dict[int, Any] = {id(part): part for part in parts}
        self.before = [
            {name: (frozen(value), _copy_if_possible(value, memo)) for name, value in own_attributes(module).items()}
            for module in self.modules
        ]

    def put_back(self) -> None:
        """Put back the attributes that have changed since; others stay the same objects."""
        for module, before in zip(self.modules, self.before, strict=True):
            now = own_attributes(module)
            for name in now.keys() - before.keys():
                del vars(module)[name]
            for name, (state, value) in before.items():
                # One that is gone may be a parameter, a buffer or a module now
                changed = frozen(now[name]) != state if name in now else not hasattr(module, name)
                if changed:
                    vars(module)[name] = value


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, th.Tensor) else copy.deepcopy(value)


def _copy_if_possible(value: Any, memo: dict[int, Any]) -> Any:
    # Part of it may be copied before another part cannot be
    copies = memo.copy()
    # Whatever a custom class may raise
    with suppress(Exception):
        if not is_left_alone(value):
            value = copy.deepcopy(value, copies)
            memo.update(copies)
    return value
