"""The loss of a minibatch, equation (9), as a pure function that interpreted and compiled updates share."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch as th
from torch.nn import functional as F

from sb3_ppo_variants.kl import ClosedForm, kl_from_parameters
from sb3_ppo_variants.objectives import Coefficients, Objective, Terms

# What `ppo_loss` measures beside the gradient, in this order; the names are SB3's
METRICS = ("loss", "policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction")
# Only the losses, which come first, must be finite: the approximate KL may overflow with the ratio, even if that is not used
APPROX_KL = METRICS.index("approx_kl")


class Batch(NamedTuple):
    """
    Samples of a rollout, each tensor of shape ``(batch, ...)``: the six of SB3's ``RolloutBufferSamples`` (observations may be
    a dict), and what kinds of policies and objectives need besides.
    """

    observations: Any
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    # Parameters of pi_old(.|s), as in `kl.ClosedForm`; empty where they are not needed, or not known
    old_parameters: tuple[th.Tensor, ...]
    # What the policy is given besides the observations, by the name of its methods' argument: action masks, memory
    given: dict[str, Any] = {}  # noqa: RUF012
    # Which samples are real, and not padding; `None` where all are real
    valid: th.Tensor | None = None

    def select(self, index: th.Tensor) -> "Batch":
        """Some of the samples, in new tensors."""
        return Batch(*(_select(field, index) for field in self[:-1]))


def _select(field: Any, index: th.Tensor) -> Any:
    if isinstance(field, dict):
        return {key: _select(part, index) for key, part in field.items()}
    if isinstance(field, tuple):
        parts = [_select(part, index) for part in field]
        return field._make(parts) if hasattr(field, "_make") else tuple(parts)
    return field.index_select(0, index)


class Settings(NamedTuple):
    """How the minibatch steps of an update are made."""

    objective: Objective
    coef: Mapping[str, float]
    normalizes_minibatch: bool
    n_epochs: int
    batch_size: int
    max_grad_norm: float | None
    # The approximate KL of a minibatch that ends the update
    max_approx_kl: float


class Evaluation(NamedTuple):
    """What a policy says of the observations and actions of a minibatch. All tensors have shape ``(batch,)``."""

    values: th.Tensor
    log_prob: th.Tensor
    entropy: th.Tensor | None
    # Returns the closed form of the KL of the action distributions pi(.|s)
    closed_form: Callable[[], ClosedForm]


def standardize(advantages: th.Tensor) -> th.Tensor:
    """Shift and scale advantages, of shape ``(batch,)``, to mean 0 and standard deviation 1; a single one stays."""
    return advantages if len(advantages) == 1 else (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def without_padding(batch: Batch, evaluation: Evaluation) -> tuple[Batch, Evaluation]:
    """The real samples of a minibatch, as far as the loss needs them."""
    valid = batch.valid
    assert valid is not None
    old = {name: getattr(batch, name)[valid] for name in ("old_values", "old_log_prob", "advantages", "returns")}
    batch = batch._replace(**old, old_parameters=tuple(parameter[valid] for parameter in batch.old_parameters))

    def closed_form() -> ClosedForm:
        form = evaluation.closed_form()
        return ClosedForm(form.divergence, tuple(parameter[valid] for parameter in form.parameters))

    entropy = None if evaluation.entropy is None else evaluation.entropy[valid]
    return batch, Evaluation(evaluation.values[valid], evaluation.log_prob[valid], entropy, closed_form)


def ppo_loss(
    objective: Objective, batch: Batch, evaluation: Evaluation, coef: Coefficients, normalizes_minibatch: bool
) -> tuple[th.Tensor, th.Tensor]:
    """
    Equation (9) with its sign turned: - L^S + c1 L^VF - c2 S, each a mean over the minibatch.

    :param objective: the surrogate objective L^S, per sample
    :param batch: the minibatch, with pi_old
    :param evaluation: what the policy says of it
    :param coef: coefficients by name: ``vf_coef`` (c1), ``ent_coef`` (c2), and ``clip_range``, ``clip_range_vf`` where there
        is such clipping; with a ``pessimistic_vf``, of any value, clipping never makes the error of a value smaller
    :param normalizes_minibatch: whether the advantages are normalised in the minibatch
    :return: the loss and, without gradient, the values of ``METRICS``
    :raises NotImplementedError: if the objective asks for the KL, and no closed form is known
    :raises ValueError: if the objective does not return one entry per sample
    """
    is_padded = batch.valid is not None
    if is_padded:
        batch, evaluation = without_padding(batch, evaluation)

    def kl() -> th.Tensor:
        form = evaluation.closed_form()
        if not batch.old_parameters:
            raise NotImplementedError("KL[pi_old, pi] is not known")
        return kl_from_parameters(batch.old_parameters, form)

    advantages = standardize(batch.advantages) if normalizes_minibatch else batch.advantages
    terms = Terms(evaluation.log_prob, batch.old_log_prob, advantages, kl)
    surrogate = objective(terms, coef)
    if surrogate.shape != terms.log_prob.shape:
        expected, found = tuple(terms.log_prob.shape), tuple(surrogate.shape)
        raise ValueError(f"objective must return a tensor of shape {expected}, an entry per sample, but its shape is {found}")
    policy_loss = -surrogate.mean()

    values = evaluation.values
    if "clip_range_vf" in coef:
        largest = coef["clip_range_vf"]
        clipped = batch.old_values + th.clamp(values - batch.old_values, -largest, largest)  # type: ignore[arg-type]
        if "pessimistic_vf" in coef:
            # As in openai/baselines: of both errors the larger one
            is_worse = (values - batch.returns).abs() > (clipped - batch.returns).abs()
            clipped = th.where(is_worse, values, clipped)
        values = clipped
    # Both are the mean squared error, rounded as SB3 and as contrib round it
    value_loss = ((batch.returns - values) ** 2).mean() if is_padded else F.mse_loss(batch.returns, values)

    # Distributions without a closed form of the entropy get the estimate E[-log pi(a|s)]
    entropy_loss = -th.mean(-terms.log_prob if evaluation.entropy is None else evaluation.entropy)

    loss = policy_loss + coef["ent_coef"] * entropy_loss + coef["vf_coef"] * value_loss

    with th.no_grad():
        ratio, log_ratio = terms.ratio, terms.log_ratio
        # Estimator k3 of http://joschu.net/blog/kl-approx.html
        approx_kl = th.mean((ratio - 1) - log_ratio)
        if "clip_range" in coef:
            clip_fraction = th.mean((th.abs(ratio - 1) > coef["clip_range"]).to(loss.dtype))
        else:
            clip_fraction = th.zeros_like(loss)
        metrics = th.stack([loss, policy_loss, value_loss, entropy_loss, approx_kl, clip_fraction]).detach()
    return loss, metrics
