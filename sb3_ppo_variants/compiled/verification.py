"""Verify by numbers: the first compiled step of an update is compared with the same step made by SB3's own methods."""

import math
from typing import TYPE_CHECKING, NamedTuple

import torch as th

from sb3_ppo_variants.compiled.support import CompilationError
from sb3_ppo_variants.kl import ClosedForm
from sb3_ppo_variants.loss import APPROX_KL, METRICS, Batch, Evaluation, Settings, ppo_loss
from sb3_ppo_variants.optimizer import trainable
from sb3_ppo_variants.policies import FeedForward, kept_buffers, kept_generators

if TYPE_CHECKING:
    from sb3_ppo_variants.compiled.step import CompiledStep

# Largest relative difference; rounding makes one of about 1e-6
TOLERANCE = 1e-3
# Differences that are small beside the whole are rounding errors of what cancels out
FLOOR = 1e-5
# Of a policy that may draw random numbers elsewhere than from torch, and make something else of them only now and then
N_EVALUATIONS = 10
# Relative error of the parameters in a nearby step, and how many times as far off as that step a compiled one may be
ERROR = 1e-6
SLACK = 10
# What a step returns. A ratio next to the clip range counts or does not: rounding decides
NAMES = (*METRICS, "grad_norm")
COMPARED = [i for i, name in enumerate(NAMES) if name != "clip_fraction"]
# What the rollout tells of the first step
OF_ROLLOUT = [METRICS.index(name) for name in ("policy_gradient_loss", "value_loss", "approx_kl")]


class ExpectedStep(NamedTuple):
    """A step as far as its gradient, which is 0 where the loss does not depend on a parameter: these are `unused`."""

    row: th.Tensor
    gradients: list[th.Tensor]
    unused: set[int]


def check_purity(kind: FeedForward, batch: Batch, settings: Settings) -> None:
    """Check that a policy's numbers depend on nothing but input, tensors and torch's generator, as compiled code takes it."""
    first: list[th.Tensor] = []
    for _ in range(N_EVALUATIONS):
        found = expected_step(kind, batch, settings, th.get_rng_state())
        numbers = [number.nan_to_num() for number in (found.row, *found.gradients)]
        first = first or numbers
        if not all(map(th.equal, numbers, first)):
            raise CompilationError("evaluations of the policy on the same minibatch give different numbers")


def with_another_pi_old(data: Batch) -> Batch:
    """A rollout as if another policy had acted, so that ratios are from 0.6 to 1.6."""
    differences = th.linspace(-0.5, 0.5, len(data.returns), dtype=data.returns.dtype)
    old_parameters = tuple(1.1 * parameter for parameter in data.old_parameters)
    return data._replace(old_log_prob=data.old_log_prob + differences, old_parameters=old_parameters)


def expected_step(kind: FeedForward, batch: Batch, settings: Settings, generator_state: th.Tensor) -> ExpectedStep:
    """The step by SB3's methods from a state of torch's generator, which is left as it was, as are the buffers."""
    with kept_buffers(kind.policy), kept_generators(kind.policy.device), th.enable_grad():
        th.set_rng_state(generator_state)
        parameters = trainable(kind.policy)
        loss, metrics = ppo_loss(settings.objective, batch, kind.evaluate(batch), settings.coef, settings.normalizes_minibatch)
        found = th.autograd.grad(loss, parameters, allow_unused=True)
    gradients = [th.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
    row = th.cat([metrics, th.nn.utils.get_total_norm(gradients)[None]])
    return ExpectedStep(row, gradients, {i for i, gradient in enumerate(found) if gradient is None})


def nearby_step(kind: FeedForward, batch: Batch, settings: Settings, generator_state: th.Tensor, error: float) -> ExpectedStep:
    """The same step from parameters with an error of some roundings: how far these reach where much cancels out."""
    parameters, generator = trainable(kind.policy), th.Generator().manual_seed(0)
    before = [parameter.detach().clone() for parameter in parameters]
    with th.no_grad():
        try:
            for parameter in parameters:
                parameter.mul_(1 + error * (2 * th.rand(parameter.shape, generator=generator) - 1))
            return expected_step(kind, batch, settings, generator_state)
        finally:
            th._foreach_copy_(parameters, before)


def is_that_of(kind: FeedForward, batch: Batch, settings: Settings, generator_state: th.Tensor, row: th.Tensor) -> bool:
    """Whether the metrics of a step are those by SB3's methods with the same random numbers."""
    with kept_buffers(kind.policy), kept_generators(kind.policy.device), th.no_grad():
        th.set_rng_state(generator_state)
        return _has_metrics(settings, batch, kind.evaluate(batch), row, COMPARED[:-1])


def is_that_of_the_rollout(settings: Settings, data: Batch, index: th.Tensor, row: th.Tensor) -> bool:
    """Whether the policy before the first step of an update has the values and log probabilities of the rollout."""
    values, log_prob, advantages, returns = (tensor[index] for tensor in data[2:6])
    form = ClosedForm(lambda *_: th.zeros_like(log_prob), (log_prob,))
    batch = Batch(None, values, values, log_prob, advantages, returns, form.parameters)
    # The entropy is not known
    evaluation = Evaluation(values, log_prob, None, lambda: form)
    return _has_metrics(settings, batch, evaluation, row, OF_ROLLOUT)


def _has_metrics(settings: Settings, batch: Batch, evaluation: Evaluation, row: th.Tensor, positions: list[int]) -> bool:
    """Whether those of a step are those of an evaluation, and nothing cancels out in them."""
    _, right = ppo_loss(settings.objective, batch, evaluation, settings.coef, settings.normalizes_minibatch)
    found, right = row[positions], right[positions]
    return bool(((found - right).abs() <= TOLERANCE * right.abs() + FLOOR).all())


def difference(
    step: "CompiledStep", kind: FeedForward, batch: Batch, before: list[th.Tensor], generator_state: th.Tensor, row: th.Tensor
) -> str | None:
    """
    How a compiled step differs from the step by SB3's methods with the same random numbers, if it does; ``before`` are
    parameters and moments before the step. A difference not much larger than that of a nearby step is an error of rounding.
    """
    expected = expected_step(kind, batch, step.settings, generator_state)
    step.unused = expected.unused
    found = _difference(step, before, expected, expected, row)
    # Of two opposite errors, one brings what lies at a kink, as of a ReLU, to its other side
    for error in (ERROR, -ERROR):
        if found is None:
            return None
        found = _difference(step, before, expected, nearby_step(kind, batch, step.settings, generator_state, error), row)
    return found


def _difference(
    step: "CompiledStep", before: list[th.Tensor], expected: ExpectedStep, nearby: ExpectedStep, row: th.Tensor
) -> str | None:
    found, right, near = (numbers[COMPARED] for numbers in (row, expected.row, nearby.row))
    scale = right.nan_to_num(posinf=0, neginf=0).abs().max().clamp(min=1)
    is_same = (found == right) | (found.isnan() & right.isnan())
    roundings = (near - right).abs()
    # Gradients that are not the same may have the same norm
    roundings[-1] = th.nn.utils.get_total_norm([a - b for a, b in zip(nearby.gradients, expected.gradients, strict=True)])
    limits = (TOLERANCE * right.abs() + FLOOR * scale + SLACK * roundings).nan_to_num()
    i = _exceeding((found - right).abs().masked_fill(is_same, 0), limits)
    if i is not None:
        return f"{NAMES[COMPARED[i]]} is {found[i]:.6g} instead of {right[i]:.6g}"
    if row[APPROX_KL] > step.settings.max_approx_kl or not right[-1].isfinite():
        # No step has been made, or one that ends the training
        return None
    limit = math.inf if step.settings.max_grad_norm is None else step.settings.max_grad_norm
    # The step's own norm, which has been compared: if gradients differ by roundings, all is scaled otherwise
    scale = th.clamp(limit / (found[-1] + 1e-6), max=1.0)
    gradients = [scale * step.layout.concatenate(one.gradients) for one in (expected, nearby)]
    return _difference_of_moments(step, before, expected.unused, *gradients) or _difference_of_parameters(step, before[0])


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
        if step.n_adam_steps > 0 and parameter not in state and i not in unused:
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
    (beta1, beta2), n_adam_steps = group["betas"], step.n_adam_steps + 1
    denominator = step.exp_avg_sq.sqrt() / (1 - beta2**n_adam_steps) ** 0.5 + group["eps"]
    update = group["lr"] / (1 - beta1**n_adam_steps) * step.exp_avg / denominator
    found = (step.parameters - (before - update)).abs()
    i = _exceeding(found, TOLERANCE * update.abs() + 1e-6 * (before.abs() + group["lr"]))
    return None if i is None else f"a parameter is off by {found[i]:.3g}"
