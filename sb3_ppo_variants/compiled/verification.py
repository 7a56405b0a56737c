"""Verify by numbers: the first compiled step of an update is compared with the same step made by SB3's own methods."""

import math
import pickle
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch as th

from sb3_ppo_variants.compiled.support import CompilationError
from sb3_ppo_variants.loss import APPROX_KL, METRICS, Batch, Settings, ppo_loss
from sb3_ppo_variants.optimizer import trainable
from sb3_ppo_variants.policies import FeedForward, kept_buffers, kept_generators

if TYPE_CHECKING:
    from sb3_ppo_variants.compiled.step import CompiledStep

# Largest relative difference; rounding makes one of about 1e-6
TOLERANCE = 1e-3
# Differences that are small beside the whole are rounding errors of what cancels out
FLOOR = 1e-5
# Relative error of the parameters of a nearby step, and how much farther than that step another may be
ERROR = 1e-6
SLACK = 10
# A ratio next to the clip range counts or does not: rounding decides
COMPARED = [i for i, name in enumerate(METRICS) if name != "clip_fraction"]


class ExpectedStep(NamedTuple):
    """A step as far as its gradient."""

    metrics: th.Tensor
    # 0 where the loss does not depend on a parameter: these are `unused`
    gradients: list[th.Tensor]
    unused: set[int]
    # Whether the policy has drawn random numbers from torch, so that another step cannot be compared with this one
    draws: bool


def check_purity(step: "CompiledStep", batch: Batch, coef: Mapping[str, float]) -> None:
    """Check that a policy's numbers depend on nothing but input, tensors and torch's generator, as compiled code takes it."""
    others = _random_states()
    results = []
    for _ in range(2):
        with kept_generators(step.policy.device), th.enable_grad():
            before = th.get_rng_state()
            parameters = [parameter.detach().clone().requires_grad_() for parameter in step.layout.parameters]
            loss, (metrics, _) = step.loss(batch, dict(coef), parameters, step.constants)
            gradients = th.autograd.grad(loss, parameters, allow_unused=True)
            results.append([metrics, *(gradient for gradient in gradients if gradient is not None)])
            step.draws = not th.equal(th.get_rng_state(), before)
    if _random_states() != others:
        raise CompilationError("the policy draws random numbers from Python or NumPy, not from torch")
    if not all(th.equal(one.nan_to_num(), other.nan_to_num()) for one, other in zip(*results, strict=True)):
        raise CompilationError("two evaluations of the policy on the same minibatch give different numbers")


def _random_states() -> bytes:
    return pickle.dumps((random.getstate(), np.random.get_state()))


def expected_step(kind: FeedForward, batch: Batch, settings: Settings) -> ExpectedStep:
    """The first step of an update, of which buffers and generators are left as they were."""
    policy = kind.policy
    parameters = trainable(policy)
    before = th.get_rng_state()
    with kept_buffers(policy), th.enable_grad():
        loss, metrics = ppo_loss(settings.objective, batch, kind.evaluate(batch), settings.coef, settings.standardizes)
        found = th.autograd.grad(loss, parameters, allow_unused=True)
    draws = not th.equal(th.get_rng_state(), before)
    if draws:
        th.set_rng_state(before)
    unused = {i for i, gradient in enumerate(found) if gradient is None}
    return ExpectedStep(metrics, _without_none(found, parameters), unused, draws)


def nearby_step(step: "CompiledStep", batch: Batch, settings: Settings) -> ExpectedStep:
    """The same step from parameters with an error of some roundings: how far these reach where much cancels out."""
    generator = th.Generator().manual_seed(0)
    errors = [1 + ERROR * (2 * th.rand(p.shape, generator=generator) - 1) for p in step.layout.parameters]
    parameters = [(p.detach() * error).requires_grad_() for p, error in zip(step.layout.parameters, errors, strict=True)]
    with kept_generators(step.policy.device), th.enable_grad():
        loss, (metrics, _) = step.loss(batch, dict(settings.coef), parameters, step.constants)
        found = th.autograd.grad(loss, parameters, allow_unused=True)
    return ExpectedStep(metrics, _without_none(found, parameters), set(), False)


def _without_none(gradients: Sequence[th.Tensor | None], parameters: Sequence[th.Tensor]) -> list[th.Tensor]:
    return [th.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]


def difference(
    step: "CompiledStep",
    before: list[th.Tensor],
    expected: ExpectedStep,
    row: th.Tensor,
    settings: Settings,
    nearby: ExpectedStep | None = None,
) -> str | None:
    """
    What a compiled step has computed otherwise, if anything; ``before`` are parameters and moments before it. What is not much
    farther from the expected step than a nearby one, is an error of rounding.
    """
    if expected.draws:
        return None
    nearby = nearby or expected
    right, near = (th.cat([one.metrics[COMPARED], _norm(one.gradients)[None]]) for one in (expected, nearby))
    found, norm = th.cat([row[COMPARED], row[-1:]]), right[-1]
    scale = right.nan_to_num(posinf=0, neginf=0).abs().max().clamp(min=1)
    is_same = (found == right) | (found.isnan() & right.isnan())
    limits = (TOLERANCE * right.abs() + FLOOR * scale + SLACK * (near - right).abs()).nan_to_num()
    i = _exceeding((found - right).abs().masked_fill(is_same, 0), limits)
    if i is not None:
        return f"{[*METRICS, 'grad_norm'][[*COMPARED, -1][i]]} is {found[i]:.6g} instead of {right[i]:.6g}"
    if row[APPROX_KL] > settings.max_approx_kl or not norm.isfinite():
        # No step has been made, or one that ends the training
        return None
    limit = math.inf if settings.max_grad_norm is None else settings.max_grad_norm
    scales = [th.clamp(limit / (numbers[-1] + 1e-6), max=1.0) for numbers in (right, near)]
    gradients = [scale * step.layout.concatenate(one.gradients) for scale, one in zip(scales, (expected, nearby), strict=True)]
    moments = _difference_of_moments(step, before, expected.unused, *gradients)
    return moments or _difference_of_parameters(step, before[0])


def _norm(tensors: list[th.Tensor]) -> th.Tensor:
    return th.linalg.vector_norm(th.stack(th._foreach_norm(tensors)))


def _exceeding(differences: th.Tensor, limits: th.Tensor) -> int | None:
    """The position of the difference that exceeds its limit by most, NaN first, if one does."""
    excess = (differences - limits).nan_to_num(nan=float("inf"))
    return int(excess.argmax()) if excess.max() > 0 else None


def _difference_of_moments(
    step: "CompiledStep", before: list[th.Tensor], unused: set[int], gradient: th.Tensor, nearby: th.Tensor
) -> str | None:
    """Adam's moments must be those of the expected gradient."""
    layout, state = step.layout, step.policy.optimizer.state
    (group,) = step.policy.optimizer.param_groups
    names = [f"policy.{name}" for name, parameter in step.policy.named_parameters() if parameter.requires_grad]
    for i, parameter in enumerate(layout.parameters):
        if step.n_steps > 0 and parameter not in state and i not in unused:
            return f"the loss depends on {names[i]} for the first time, whose steps Adam counts anew"
    first, near = (g + group["weight_decay"] * before[0] for g in (gradient, nearby))
    moments = (
        ("exp_avg", step.exp_avg, before[1], first, near),
        ("exp_avg_sq", step.exp_avg_sq, before[2], first * first, near * near),
    )
    for (name, found, old, new, near), beta in zip(moments, group["betas"], strict=True):
        change = (1 - beta) * (new - old)
        for i in unused:
            layout.views(change)[i].zero_()
        differences, sizes, roundings, olds = map(layout.norms, (found - old - change, new, near - new, old))
        limits = 2 * TOLERANCE * sizes + FLOOR * th.linalg.vector_norm(sizes) + SLACK * roundings
        worst = _exceeding(differences, (1 - beta) * limits + 1e-6 * olds)
        if worst in unused:
            return f"the loss does not depend on {names[worst]}, which Adam must leave as it is"
        if worst is not None:
            return f"{name} of {names[worst]} is off by {differences[worst] / (1 - beta):.3g} of {sizes[worst]:.3g}"
    return None


def _difference_of_parameters(step: "CompiledStep", before: th.Tensor) -> str | None:
    """The parameters must be those that Adam makes of its moments."""
    (group,) = step.policy.optimizer.param_groups
    (beta1, beta2), n_steps = group["betas"], step.n_steps + 1
    denominator = step.exp_avg_sq.sqrt() / (1 - beta2**n_steps) ** 0.5 + group["eps"]
    update = group["lr"] / (1 - beta1**n_steps) * step.exp_avg / denominator
    found = (step.parameters - (before - update)).abs()
    i = _exceeding(found, TOLERANCE * update.abs() + 1e-6 * (before.abs() + group["lr"]))
    return None if i is None else f"a parameter is off by {found[i]:.3g}"
