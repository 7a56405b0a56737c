"""
The surrogate objectives of the PPO paper (Schulman et al. 2017, https://arxiv.org/abs/1707.06347).

Each is a pure function of ``terms``, those of a minibatch, and ``coef``, coefficients by name. It returns a tensor of shape
``(batch,)``, one entry per sample, to be *maximised*, as in the paper: the policy loss of a minibatch is minus its mean. An
objective knows nothing of networks, buffers or logging, so that interpreted and compiled code can share it.
"""

from collections.abc import Callable, Mapping
from functools import cached_property

import torch as th

# In compiled code, numbers are tensors without dimensions
Coefficient = float | th.Tensor
Coefficients = Mapping[str, Coefficient]


class Terms:
    """
    What an objective is made of, for one minibatch. All tensors have shape ``(batch,)``.

    :param log_prob: log pi(a|s) in nats, with gradient
    :param old_log_prob: log pi_old(a|s) in nats
    :param advantages: estimates of the advantage A, normalised if the algorithm normalises them
    :param kl: computes KL[pi_old(.|s), pi(.|s)] in nats
    """

    def __init__(
        self, log_prob: th.Tensor, old_log_prob: th.Tensor, advantages: th.Tensor, kl: Callable[[], th.Tensor]
    ) -> None:
        self.log_prob = log_prob
        self.advantages = advantages
        #: log r
        self.log_ratio = log_prob - old_log_prob
        #: r = pi(a|s) / pi_old(a|s)
        self.ratio = th.exp(self.log_ratio)
        self._kl = kl

    @cached_property
    def kl(self) -> th.Tensor:
        """KL[pi_old(.|s), pi(.|s)] in nats, exact; computed when first asked for, so that it is free where unused."""
        return self._kl()


Objective = Callable[[Terms, Coefficients], th.Tensor]


def policy_gradient(terms: Terms, coef: Coefficients) -> th.Tensor:
    """
    Equation (2): L^PG = E[log pi(a|s) A].

    :param terms: those of a minibatch
    :param coef: not used
    :return: the objective per sample, shape ``(batch,)``
    """
    return terms.log_prob * terms.advantages


def conservative_policy_iteration(terms: Terms, coef: Coefficients) -> th.Tensor:
    """
    Equation (6): L^CPI = E[r A], "no clipping or penalty" in Table 1.

    :param terms: those of a minibatch
    :param coef: not used
    :return: the objective per sample, shape ``(batch,)``
    """
    return terms.advantages * terms.ratio


def clipped_surrogate(terms: Terms, coef: Coefficients) -> th.Tensor:
    """
    Equation (7): L^CLIP = E[min(r A, clip(r, 1 - epsilon, 1 + epsilon) A)].

    :param terms: those of a minibatch
    :param coef: ``clip_range`` is epsilon
    :return: the objective per sample, shape ``(batch,)``
    """
    epsilon = coef["clip_range"]
    clipped_ratio = th.clamp(terms.ratio, 1 - epsilon, 1 + epsilon)  # type: ignore[arg-type]
    return th.min(terms.advantages * terms.ratio, terms.advantages * clipped_ratio)


def kl_penalized_surrogate(terms: Terms, coef: Coefficients) -> th.Tensor:
    """
    Equation (8): L^KLPEN = E[r A - beta KL[pi_old(.|s), pi(.|s)]].

    With a ``clip_range`` the first term is that of equation (7) instead of (6): the penalty "in addition to" the clipped
    surrogate objective, as section 4 allows.

    :param terms: those of a minibatch
    :param coef: ``kl_coef`` is beta; at 0 the penalty is left out, whatever the KL. ``clip_range``, if given, is epsilon
    :return: the objective per sample, shape ``(batch,)``
    """
    surrogate = clipped_surrogate(terms, coef) if "clip_range" in coef else conservative_policy_iteration(terms, coef)
    beta = coef["kl_coef"]
    # Left out at 0, as 0 * inf would be NaN, and as a distribution may have no closed form of the KL
    if isinstance(beta, th.Tensor):
        return surrogate - th.where(beta == 0, th.zeros_like(terms.kl), beta * terms.kl)
    return surrogate if beta == 0 else surrogate - beta * terms.kl


#: Objectives that do not ask for the KL
WITHOUT_KL = (policy_gradient, conservative_policy_iteration, clipped_surrogate)
