"""An update is a transaction: it is made as a whole, or not at all."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch.utils import _pytree as pytree

from sb3_ppo_variants.checks import NonFiniteUpdateError
from sb3_ppo_variants.loss import APPROX_KL


@contextmanager
def transaction(algorithm: OnPolicyAlgorithm) -> Iterator["Snapshot"]:
    """Undo an update in which there is an error."""
    before = Snapshot(algorithm)
    try:
        yield before
    # Also when the user interrupts it: half an update would be saved without its beta
    except BaseException as error:
        names = before.not_finite(algorithm)
        before.restore(algorithm)
        if isinstance(error, RuntimeError) and "without overflow" in str(error):
            raise NonFiniteUpdateError.of(["the optimizer's step"], algorithm.num_timesteps) from error
        # As torch's distributions say it
        if "to satisfy the constraint" in str(error):
            raise NonFiniteUpdateError.of(names or ["the action distribution"], algorithm.num_timesteps) from error
        raise


class Snapshot:
    """What an update changes, as it is before."""

    def __init__(self, algorithm: OnPolicyAlgorithm) -> None:
        policy = algorithm.policy
        # The state may hold other objects than tensors: see nn.Module.get_extra_state
        self.policy = {name: _copy(value) for name, value in policy.state_dict().items()}
        self.buffers = {name: buffer.clone() for name, buffer in policy.named_buffers()}
        # Quicker than a deep copy
        self.optimizer = pytree.tree_map(_copy, policy.optimizer.state_dict())
        self.n_updates = algorithm._n_updates

    @th.no_grad()
    def restore(self, algorithm: OnPolicyAlgorithm) -> None:
        """Put it back."""
        algorithm._n_updates = self.n_updates
        algorithm.policy.optimizer.load_state_dict(self.optimizer)
        after = algorithm.policy.state_dict()
        # Not strict, as buffers may have come in the update. Some cannot be written to, as elements of them share memory
        changed = {name: old for name, old in self.policy.items() if not _is_same(old, after.get(name))}
        algorithm.policy.load_state_dict(changed, strict=False)
        for name, buffer in algorithm.policy.named_buffers():
            if name in self.buffers and not th.equal(buffer, self.buffers[name]):
                buffer.copy_(self.buffers[name])

    def not_finite(self, algorithm: OnPolicyAlgorithm) -> list[str]:
        """What has become NaN or infinite."""
        after = algorithm.policy.state_dict()
        # Quicker than to look at each number
        parameters = [p.detach() for p in algorithm.policy.parameters() if p.is_floating_point()]
        if all(map(math.isfinite, th._foreach_norm(parameters))) and not self.buffers:
            return []
        were_finite = [name for name, old in self.policy.items() if isinstance(old, th.Tensor) and th.isfinite(old).all()]
        return [f"policy.{name}" for name in were_finite if name in after and not th.isfinite(after[name]).all()]

    def check(self, algorithm: OnPolicyAlgorithm, epochs: list[th.Tensor], kl: float | None) -> None:
        """Check what the update has made of it."""
        names = self.not_finite(algorithm)
        if not th.isfinite(th.cat(epochs)[:, :APPROX_KL]).all():
            names.append("loss")
        if kl is not None and not math.isfinite(kl):
            names.append("KL[pi_old, pi]")
        if names:
            raise NonFiniteUpdateError.of(names, algorithm.num_timesteps)


def _is_same(old: Any, new: Any) -> bool:
    return isinstance(old, th.Tensor) and isinstance(new, th.Tensor) and th.equal(old, new)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, th.Tensor) else copy.deepcopy(value)
