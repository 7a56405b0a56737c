"""An update is a transaction: it is made as a whole, or not at all."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch.utils import _pytree as pytree

from sb3_ppo_variants.checks import NonFiniteUpdateError
from sb3_ppo_variants.loss import APPROX_KL
from sb3_ppo_variants.optimizer import by_place


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
        # As torch's distributions say it
        if "to satisfy the constraint" in str(error):
            raise NonFiniteUpdateError.of(names or ["the action distribution"], algorithm.num_timesteps) from error
        raise


@contextmanager
def kept_trainable(policy: th.nn.Module) -> Iterator[None]:
    """
    After an error, restore which parameters are trained: a callback that has frozen some for a training is not told that the
    training has failed.
    """
    before = [(parameter, parameter.requires_grad) for parameter in policy.parameters()]
    try:
        yield
    except BaseException:
        for parameter, requires_grad in before:
            parameter.requires_grad_(requires_grad)
        raise


class Snapshot:
    """What an update changes, as it is before."""

    def __init__(self, algorithm: OnPolicyAlgorithm) -> None:
        self.tensors = {name: tensor.detach().clone() for name, tensor in by_place(algorithm.policy).items()}
        # Quicker than a deep copy
        self.optimizer = pytree.tree_map_only(th.Tensor, th.clone, algorithm.policy.optimizer.state_dict())
        self.n_updates = algorithm._n_updates

    @th.no_grad()
    def restore(self, algorithm: OnPolicyAlgorithm) -> None:
        """Put it back."""
        algorithm._n_updates = self.n_updates
        algorithm.policy.optimizer.load_state_dict(self.optimizer)
        for name, tensor in by_place(algorithm.policy).items():
            # Buffers may have come in the update. Some cannot be written to, as elements of them share memory
            if name in self.tensors and not th.equal(tensor, self.tensors[name]):
                tensor.copy_(self.tensors[name])

    def not_finite(self, algorithm: OnPolicyAlgorithm) -> list[str]:
        """What has become NaN or infinite."""
        finite = {name for name, old in self.tensors.items() if th.isfinite(old).all()}
        after = by_place(algorithm.policy).items()
        return [f"policy.{name}" for name, tensor in after if name in finite and not th.isfinite(tensor).all()]

    def check(self, algorithm: OnPolicyAlgorithm, epochs: list[th.Tensor], kl: float | None) -> None:
        """Raise ``NonFiniteUpdateError`` if the update has made something NaN or infinite."""
        names = self.not_finite(algorithm)
        if not th.isfinite(th.cat(epochs)[:, :APPROX_KL]).all():
            names.append("loss")
        if kl is not None and not math.isfinite(kl):
            names.append("KL[pi_old, pi]")
        if names:
            raise NonFiniteUpdateError.of(names, algorithm.num_timesteps)
