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
    with kept_buffers(policy), kept_generators(policy.device), th.enable_grad():
        before = th.get_rng_state()
        loss, metrics = ppo_loss(settings.objective, batch, kind.evaluate(batch), settings.coef, settings.standardizes)
        draws = not th.equal(th.get_rng_state(), before)
        found = th.autograd.grad(loss, parameters, allow_unused=True)
    unused = {i for i, gradient in enumerate(found) if gradient is None}
    gradients = [th.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    return ExpectedStep(metrics, gradients, unused, draws)


def difference(step: "CompiledStep", expected: ExpectedStep, row: th.Tensor, settings: Settings) -> str | None:
    """What a compiled step has computed otherwise, if anything."""
    if expected.draws:
        return None
    norm = th.linalg.vector_norm(th.stack(th._foreach_norm(expected.gradients)))
    names = [*(METRICS[i] for i in COMPARED), "grad_norm"]
    found, right = th.cat([row[COMPARED], row[-1:]]), th.cat([expected.metrics[COMPARED], norm[None]])
    scale = right[right.isfinite()].abs().max().clamp(min=1) if right.isfinite().any() else 1.0
    is_same = (found == right) | (found.isnan() & right.isnan())
    limits = (TOLERANCE * right.abs() + FLOOR * scale).nan_to_num()
    i = _exceeding((found - right).abs().masked_fill(is_same, 0), limits)
    if i is not None:
        return f"{names[i]} is {found[i]:.6g} instead of {right[i]:.6g}"
    if row[APPROX_KL] > settings.max_approx_kl or not norm.isfinite():
        # No step has been made, or one that ends the training
        return None
    limit = settings.max_grad_norm
    clipped_to = 1.0 if limit is None else th.clamp(limit / (norm + 1e-6), max=1.0)
    return _difference_of_moments(step, expected, clipped_to) or _difference_of_parameters(step)


def _exceeding(differences: th.Tensor, limits: th.Tensor) -> int | None:
    """The position of the difference that exceeds its limit by most, NaN first, if one does."""
    excess = (differences - limits).nan_to_num(nan=float("inf"))
    return int(excess.argmax()) if excess.max() > 0 else None


def _difference_of_moments(step: "CompiledStep", expected: ExpectedStep, clipped_to: th.Tensor | float) -> str | None:
    """Adam's moments must be those of the expected gradient."""
    parameters, optimizer = step.layout.parameters, step.policy.optimizer
    (group,) = optimizer.param_groups
    trained = [f"policy.{name}" for name, parameter in step.policy.named_parameters() if parameter.requires_grad]
    gradients = [clipped_to * g + group["weight_decay"] * p for g, p in zip(expected.gradients, parameters, strict=True)]
    states = [optimizer.state.get(parameter, {}) for parameter in parameters]
    for i, state in enumerate(states):
        if step.n_steps > 0 and not state and i not in expected.unused:
            return f"the loss depends on {trained[i]} for the first time, whose steps Adam counts anew"
    for name, flat, beta, power in (
        ("exp_avg", step.exp_avg, group["betas"][0], 1),
        ("exp_avg_sq", step.exp_avg_sq, group["betas"][1], 2),
    ):
        before = [state[name] if name in state else th.zeros_like(p) for state, p in zip(states, parameters, strict=True)]
        changes = [(1 - beta) * (gradient**power - moment) for gradient, moment in zip(gradients, before, strict=True)]
        for i in expected.unused:
            changes[i] = th.zeros_like(changes[i])
        after = th._foreach_add(before, changes)
        norms = [
            th.stack(th._foreach_norm(tensors))
            for tensors in (th._foreach_sub(step.layout.views(flat), after), th._foreach_pow(gradients, power), before)
        ]
        floor = FLOOR * th.linalg.vector_norm(norms[1])
        worst = _exceeding(norms[0], (1 - beta) * (TOLERANCE * power * norms[1] + floor) + 1e-6 * norms[2])
        if worst is not None:
            if worst in expected.unused:
                return f"the loss does not depend on {trained[worst]}, which Adam must leave as it is"
            return f"{name} of {trained[worst]} is off by {norms[0][worst] / (1 - beta):.3g} of {norms[1][worst]:.3g}"
    return None


def _difference_of_parameters(step: "CompiledStep") -> str | None:
    """The parameters must be those that Adam makes of its moments."""
    (group,) = step.policy.optimizer.param_groups
    (beta1, beta2), n_steps = group["betas"], step.n_steps + 1
    before = step.layout.concatenate(step.layout.parameters)
    denominator = step.exp_avg_sq.sqrt() / (1 - beta2**n_steps) ** 0.5 + group["eps"]
    update = group["lr"] / (1 - beta1**n_steps) * step.exp_avg / denominator
    found = (step.parameters - (before - update)).abs()
    i = _exceeding(found, TOLERANCE * update.abs() + 1e-6 * (before.abs() + group["lr"]))
    return None if i is None else f"a parameter is off by {found[i]:.3g}"
