"""Parameters as one tensor, so that one operation acts on all of them."""

import math
from collections.abc import Sequence

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

# Floats in the largest vectors of a CPU, 64 bytes. Parameters start at multiples of it in the flat tensor
ALIGNMENT = 16


def is_quicker_transposed(n_rows: int, n_columns: int) -> bool:
    """
    Whether a matrix product of this shape is better computed transposed. BLAS takes several times as long where the rows of
    the product do not fill whole vectors, as those of a layer with few inputs or outputs.

    :param n_rows: rows of the product
    :param n_columns: columns of the product
    :return: whether its columns fill vectors of 16 floats and its rows do not
    """
    return n_columns % ALIGNMENT != 0 and n_rows % ALIGNMENT == 0


class FlatParameters:
    """
    The parameters of a policy as slices of one flat tensor.

    :param policy: the policy
    :param transpose: whether matrices lie there in the order in which their gradients are quicker to compute
    """

    def __init__(self, policy: ActorCriticPolicy, transpose: bool = False) -> None:
        self.parameters: list[th.Tensor] = list(policy.parameters())
        self.transposed = [transpose and p.dim() == 2 and is_quicker_transposed(*p.shape) for p in self.parameters]
        position = {id(parameter): i for i, parameter in enumerate(self.parameters)}
        # A policy may hold a module under several names: each place that holds a parameter, once
        self.places = {
            ".".join(filter(None, ("policy", prefix, name))): position[id(parameter)]
            for prefix, module in policy.named_modules()
            for name, parameter in module.named_parameters(recurse=False)
        }
        self.sizes = [math.ceil(parameter.numel() / ALIGNMENT) * ALIGNMENT for parameter in self.parameters]

    def zeros(self) -> th.Tensor:
        """A flat tensor of the right size, data type and device."""
        return self.parameters[0].new_zeros(sum(self.sizes))

    def views(self, flat: th.Tensor) -> list[th.Tensor]:
        """
        The parameters in a flat tensor.

        :param flat: the flat tensor
        :return: views of it, shaped as the parameters
        """
        views = []
        for part, parameter, transposed in zip(flat.split(self.sizes), self.parameters, self.transposed, strict=True):
            part = part[: parameter.numel()]
            views.append(part.view(parameter.shape[::-1]).t() if transposed else part.view(parameter.shape))
        return views

    def concatenate(self, tensors: Sequence[th.Tensor]) -> th.Tensor:
        """
        The inverse of ``views``.

        :param tensors: tensors shaped as the parameters
        :return: one flat tensor, zero between them
        """
        parts = []
        for tensor, size, transposed in zip(tensors, self.sizes, self.transposed, strict=True):
            parts.append((tensor.t() if transposed else tensor).reshape(-1))
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
