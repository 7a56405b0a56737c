"""Verify by numbers: the first compiled step of an update is compared with the same step made by SB3's own methods."""

import pickle
import random
from collections.abc import Mapping
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
    gradients = [th.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    return ExpectedStep(metrics, gradients, unused, draws)


def difference(
    step: "CompiledStep", before: list[th.Tensor], expected: ExpectedStep, row: th.Tensor, settings: Settings
) -> str | None:
    """What a compiled step has computed otherwise, if anything; ``before`` are parameters and moments before it."""
    if expected.draws:
        return None
    norm = th.linalg.vector_norm(th.stack(th._foreach_norm(expected.gradients)))
    found, right = th.cat([row[COMPARED], row[-1:]]), th.cat([expected.metrics[COMPARED], norm[None]])
    scale = right.nan_to_num(posinf=0, neginf=0).abs().max().clamp(min=1)
    is_same = (found == right) | (found.isnan() & right.isnan())
    i = _exceeding((found - right).abs().masked_fill(is_same, 0), (TOLERANCE * right.abs() + FLOOR * scale).nan_to_num())
    if i is not None:
        return f"{[*METRICS, 'grad_norm'][[*COMPARED, -1][i]]} is {found[i]:.6g} instead of {right[i]:.6g}"
    if row[APPROX_KL] > settings.max_approx_kl or not norm.isfinite():
        # No step has been made, or one that ends the training
        return None
    limit = settings.max_grad_norm
    clipped_to = 1.0 if limit is None else th.clamp(limit / (norm + 1e-6), max=1.0)
    return _difference_of_moments(step, before, expected, clipped_to) or _difference_of_parameters(step, before[0])


def _exceeding(differences: th.Tensor, limits: th.Tensor) -> int | None:
    """The position of the difference that exceeds its limit by most, NaN first, if one does."""
    excess = (differences - limits).nan_to_num(nan=float("inf"))
    return int(excess.argmax()) if excess.max() > 0 else None


def _difference_of_moments(
    step: "CompiledStep", before: list[th.Tensor], expected: ExpectedStep, clipped_to: th.Tensor | float
) -> str | None:
    """Adam's moments must be those of the expected gradient."""
    layout, state = step.layout, step.policy.optimizer.state
    (group,) = step.policy.optimizer.param_groups
    names = [f"policy.{name}" for name, parameter in step.policy.named_parameters() if parameter.requires_grad]
    for i, parameter in enumerate(layout.parameters):
        if step.n_steps > 0 and parameter not in state and i not in expected.unused:
            return f"the loss depends on {names[i]} for the first time, whose steps Adam counts anew"
    gradient = clipped_to * layout.concatenate(expected.gradients) + group["weight_decay"] * before[0]
    moments = (("exp_avg", step.exp_avg, before[1], gradient), ("exp_avg_sq", step.exp_avg_sq, before[2], gradient * gradient))
    for (name, found, old, new), beta in zip(moments, group["betas"], strict=True):
        change = (1 - beta) * (new - old)
        for i in expected.unused:
            layout.views(change)[i].zero_()
        differences, sizes, olds = map(layout.norms, (found - old - change, new, old))
        limits = (1 - beta) * (2 * TOLERANCE * sizes + FLOOR * th.linalg.vector_norm(sizes)) + 1e-6 * olds
        worst = _exceeding(differences, limits)
        if worst in expected.unused:
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
