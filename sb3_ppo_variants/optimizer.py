"""The step of the optimizer, and what quicker ones need to know: whether it is a plain Adam, and parameters as one tensor."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

# Floats in the largest vectors of a CPU, 64 bytes. Parameters start at multiples of it in the flat tensor
ALIGNMENT = 16


class Step(AbstractContextManager["Step"]):
    """The minibatch steps of an update, as SB3 makes them."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy

    def __exit__(self, *_: object) -> None:
        """Put the state that the steps have made into the optimizer; these steps have already done so."""

    def __call__(self, loss: th.Tensor, max_grad_norm: float | None) -> th.Tensor:
        """Make a step, and return the norm of the gradient before it is clipped."""
        self.policy.optimizer.zero_grad()
        loss.backward()
        gradients = [parameter.grad for parameter in self.policy.parameters() if parameter.grad is not None]
        norm = th.linalg.vector_norm(th.stack([th.linalg.vector_norm(gradient) for gradient in gradients]))
        if max_grad_norm is not None:
            th.nn.utils.clip_grad_norm_(self.policy.parameters(), max_grad_norm)
        self.policy.optimizer.step()
        return norm


def not_plain_adam(policy: ActorCriticPolicy) -> str | None:
    """Why a policy's optimizer is not ``torch.optim.Adam`` on all of its parameters with its usual formula."""
    optimizer = policy.optimizer
    if type(optimizer) is not th.optim.Adam:
        return f"the optimizer is {type(optimizer).__name__}, and only torch.optim.Adam is supported"
    if len(optimizer.param_groups) != 1:
        return "the optimizer has several parameter groups"
    (group,) = optimizer.param_groups
    for option in ("amsgrad", "maximize", "capturable", "differentiable", "fused", "decoupled_weight_decay"):
        if group.get(option):
            return f"the optimizer has {option}=True"
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return "the optimizer's step has hooks"
    if _global_optimizer_pre_hooks or _global_optimizer_post_hooks:
        return "the steps of all optimizers have hooks"
    if "step" in vars(optimizer):
        return "the optimizer's step has been replaced, as a learning rate scheduler does"
    if [id(parameter) for parameter in policy.parameters()] != [id(parameter) for parameter in group["params"]]:
        return "the optimizer does not train exactly the policy's parameters"
    if len({int(optimizer.state[p]["step"]) for p in trainable(policy) if "step" in optimizer.state.get(p, {})}) > 1:
        return "the optimizer has made more steps on some parameters than on others"
    return None


def trainable(policy: ActorCriticPolicy) -> list[th.Tensor]:
    """The parameters that a step changes."""
    return [parameter for parameter in policy.parameters() if parameter.requires_grad]


def by_place(module: nn.Module) -> dict[str, th.Tensor]:
    """Parameters and buffers by all places that hold one, for ``functional_call`` without its tying: some may be shared."""
    return {
        ".".join(filter(None, (prefix, name))): tensor
        for prefix, part in module.named_modules()
        for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
    }


def is_quicker_transposed(n_rows: int, n_columns: int) -> bool:
    """Whether a matrix product is better computed transposed: BLAS is slow where its rows do not fill whole vectors."""
    return n_columns % ALIGNMENT != 0 and n_rows % ALIGNMENT == 0


class FlatParameters:
    """The parameters of a policy, but for frozen ones, as slices of one flat tensor: one operation acts on all of them."""

    def __init__(self, policy: ActorCriticPolicy, transpose: bool = False) -> None:
        self.parameters = trainable(policy)
        self.transposed = [transpose and p.dim() == 2 and is_quicker_transposed(*p.shape) for p in self.parameters]
        position = {id(parameter): i for i, parameter in enumerate(self.parameters)}
        self.places = {name: position[id(tensor)] for name, tensor in by_place(policy).items() if id(tensor) in position}
        self.sizes = [math.ceil(parameter.numel() / ALIGNMENT) * ALIGNMENT for parameter in self.parameters]

    def zeros(self) -> th.Tensor:
        """A flat tensor of the right size, data type and device."""
        return self.parameters[0].new_zeros(sum(self.sizes))

    def views(self, flat: th.Tensor) -> list[th.Tensor]:
        """The parameters in a flat tensor."""
        views = []
        for part, parameter, transposed in zip(flat.split(self.sizes), self.parameters, self.transposed, strict=True):
            part = part[: parameter.numel()]
            views.append(part.view(parameter.shape[::-1]).t() if transposed else part.view(parameter.shape))
        return views

    def norms(self, flat: th.Tensor) -> th.Tensor:
        """The norm of each parameter in a flat tensor."""
        return th.stack(th._foreach_norm(self.views(flat)))

    def concatenate(self, tensors: Sequence[th.Tensor]) -> th.Tensor:
        """The inverse of ``views``."""
        parts = []
        for tensor, size, transposed in zip(tensors, self.sizes, self.transposed, strict=True):
            parts.append((tensor.t() if transposed else tensor).reshape(-1))
            if size > tensor.numel():
                parts.append(tensor.new_zeros(size - tensor.numel()))
        return th.cat(parts)

    def at_places(self, tensors: Sequence[th.Tensor]) -> dict[str, th.Tensor]:
        """Arguments for ``functional_call``."""
        return {name: tensors[position] for name, position in self.places.items()}
