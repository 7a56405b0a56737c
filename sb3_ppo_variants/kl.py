"""
KL[pi_old, pi] of action distributions in closed form.

All divergences are in nats, per state (shape ``(batch,)``), summed over the action dimensions, and differentiable with
respect to the new policy only.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeGuard

import torch as th
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal
from torch.nn import functional as F


def kl_normal(old_mean: th.Tensor, old_std: th.Tensor, mean: th.Tensor, std: th.Tensor) -> th.Tensor:
    """
    KL[N(old_mean, old_std^2), N(mean, std^2)] of Gaussians with diagonal covariance: means and standard deviations (not their
    logarithms) of shape ``(batch, action_dim)``.
    """
    variance_ratio = (old_std / std) ** 2
    return 0.5 * (variance_ratio + ((old_mean - mean) / std) ** 2 - 1 - variance_ratio.log()).sum(dim=1)


def kl_categorical(old_log_probs: th.Tensor, log_probs: th.Tensor) -> th.Tensor:
    """
    KL of categorical distributions, from the logarithms of all probabilities, of shape ``(batch, n_actions)``: of one
    distribution, or of several independent ones side by side. An action that the old policy never takes contributes 0, also
    where the new policy rules it out too (-inf, as from action masks). If the new policy rules out an action that the old one
    takes, the KL is infinite, and its gradient NaN.
    """
    old_probs = old_log_probs.exp()
    impossible = old_probs == 0
    # Masked before the subtraction, as the gradient of (-inf) - (-inf) would be NaN even if it were masked after it
    difference = old_log_probs.masked_fill(impossible, 0) - log_probs.masked_fill(impossible, 0)
    return (old_probs * difference).sum(dim=1)


def kl_bernoulli(old_logits: th.Tensor, logits: th.Tensor) -> th.Tensor:
    """
    KL of vectors of independent Bernoulli variables, from log odds of shape ``(batch, n_actions)``. Written with log-sigmoids,
    so that it stays finite where a probability rounds to 0 or 1.
    """
    one = th.sigmoid(old_logits) * (F.logsigmoid(old_logits) - F.logsigmoid(logits))
    zero = th.sigmoid(-old_logits) * (F.logsigmoid(-old_logits) - F.logsigmoid(-logits))
    return (one + zero).sum(dim=1)


class ClosedForm(NamedTuple):
    """
    What the KL of an action distribution is computed from.

    :param divergence: the KL of its family: a function of the old policy's parameters, followed by those of the new one
    :param parameters: the tensors that determine the distribution, each of shape ``(batch, ...)``: mean and standard deviation
        of Gaussians, also with gSDE (if squashed, of the Gaussian before squashing, as a bijection does not change the KL);
        log probabilities of categorical distributions; log odds of Bernoulli variables
    """

    divergence: Callable[..., th.Tensor]
    parameters: tuple[th.Tensor, ...]


def closed_form(distribution: Any) -> ClosedForm:
    """
    The closed form of the KL of one of SB3's action distributions. The family is that of the torch distribution, or the list
    of them, that it holds as ``distribution``.

    :param distribution: the action distribution, with its parameters set, or torch's own
    :return: the KL of its family, and its parameters
    :raises NotImplementedError: if no closed form is known for that family
    """
    # contrib's of several parts with masks has them as `distributions`
    beneath: Any = getattr(distribution, "distributions", None) or getattr(distribution, "distribution", distribution)
    parts = beneath if isinstance(beneath, list) else [beneath]
    if all(_is_a(Categorical, one) for one in parts):
        return form_of_parts([one.logits for one in parts])
    while isinstance(beneath, Independent):
        beneath = beneath.base_dist
    if _is_a(Normal, beneath):
        return ClosedForm(kl_normal, (beneath.mean, beneath.stddev))
    if _is_a(Bernoulli, beneath):
        return ClosedForm(kl_bernoulli, (beneath.logits,))
    raise NotImplementedError(f"No closed form of KL[pi_old, pi] is known for {type(distribution).__name__}")


def form_of_parts(log_probs: list[th.Tensor]) -> ClosedForm:
    """The closed form for an action of several parts, from log pi of all actions of each part, of shape ``(batch, ...)``."""
    parts = [part.flatten(1) for part in log_probs]
    # A single tensor is passed on itself, so that one can take derivatives with respect to it
    return ClosedForm(kl_categorical, (parts[0] if len(parts) == 1 else th.cat(parts, dim=1),))


def _is_a(family: type[Distribution], distribution: Any) -> TypeGuard[Any]:
    # A subclass with masks, say, still has the family's probabilities
    return isinstance(distribution, family) and type(distribution).log_prob is family.log_prob


def kl_from_parameters(old_parameters: tuple[th.Tensor, ...], new: ClosedForm) -> th.Tensor:
    """KL[pi_old(.|s), pi(.|s)] as in equation (8), from the parameters of pi_old's ``ClosedForm``, which get no gradient."""
    return new.divergence(*(parameter.detach() for parameter in old_parameters), *new.parameters)


def kl_old_new(old: Any, new: Any) -> th.Tensor:
    """
    KL[pi_old(.|s), pi(.|s)] of two of SB3's action distributions, per state.

    :param old: pi_old; gets no gradient
    :param new: pi
    :return: KL in nats, shape ``(batch,)``
    :raises NotImplementedError: if no closed form is known
    """
    return kl_from_parameters(closed_form(old).parameters, closed_form(new))
