"""Parameters as one tensor, so that one operation acts on all of them."""

from collections.abc import Sequence

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

# Floats between the starts of two parameters in the flat tensor are a multiple of this: 64 bytes, for aligned vector loads
ALIGNMENT = 16


class FlatParameters:
    """
    The parameters of a policy as slices of one flat tensor.

    :param policy: the policy
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.parameters: list[th.Tensor] = list(policy.parameters())
        position = {id(parameter): i for i, parameter in enumerate(self.parameters)}
        # A policy may hold a module under several names: each place that holds a parameter, once
        self.places = {
            ".".join(filter(None, ("policy", prefix, name))): position[id(parameter)]
            for prefix, module in policy.named_modules()
            for name, parameter in module.named_parameters(recurse=False)
        }
        self.sizes = [-(-parameter.numel() // ALIGNMENT) * ALIGNMENT for parameter in self.parameters]

    def zeros(self) -> th.Tensor:
        """A flat tensor of the right size, data type and device."""
        return self.parameters[0].new_zeros(sum(self.sizes))

    def views(self, flat: th.Tensor) -> list[th.Tensor]:
        """
        The parameters in a flat tensor.

        :param flat: the flat tensor
        :return: views of it, shaped as the parameters
        """
        slices = flat.split(self.sizes)
        return [part[: p.numel()].view(p.shape) for part, p in zip(slices, self.parameters, strict=True)]

    def concatenate(self, tensors: Sequence[th.Tensor]) -> th.Tensor:
        """
        The inverse of ``views``.

        :param tensors: tensors shaped as the parameters
        :return: one flat tensor, zero between them
        """
        parts = []
        for tensor, size in zip(tensors, self.sizes, strict=True):
            parts.append(tensor.reshape(-1))
            if size > tensor.numel():
                parts.append(tensor.new_zeros(size - tensor.numel()))
        return th.cat(parts)

    def by_place(self, tensors: Sequence[th.Tensor]) -> dict[str, th.Tensor]:
        """
        Arguments for ``functional_call``.

        :param tensors: tensors in place of the parameters
        :return: the tensors by the name of each place
        """
        return {name: tensors[position] for name, position in self.places.items()}
