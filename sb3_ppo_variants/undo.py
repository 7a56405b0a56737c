"""Updates that make something NaN or infinite are undone."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch.utils import _pytree as pytree

from sb3_ppo_variants.evaluation import Buffers
from sb3_ppo_variants.loss import APPROX_KL
from sb3_ppo_variants.module_state import State


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
        self.buffers, self.state = Buffers(policy), State(policy)
        # Faster than a deep copy
        self.optimizer = pytree.tree_map(_copy, policy.optimizer.state_dict())
        self.n_updates = algorithm._n_updates

    def restore(self, algorithm: OnPolicyAlgorithm) -> None:
        """
        Put it back.

        :param algorithm: the algorithm
        """
        algorithm._n_updates = self.n_updates
        algorithm.policy.optimizer.load_state_dict(self.optimizer)
        self.state.put_back()
        # Not strict, as buffers may have come in the update
        algorithm.policy.load_state_dict(self.policy, strict=False)
        self.buffers.put_back()

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


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, th.Tensor) else copy.deepcopy(value)
