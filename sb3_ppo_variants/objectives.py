"""
The surrogate objectives of the PPO paper (Schulman et al. 2017, https://arxiv.org/abs/1707.06347).

Every function is pure, takes and returns tensors of shape ``(batch,)``, one entry per sample, and is to be *maximised*,
as in the paper: the loss of a minibatch is minus the mean. They know nothing of networks, buffers or logging, so that
interpreted and compiled code can share them.

``ratio`` is r_t(theta) = pi(a_t|s_t) / pi_old(a_t|s_t) and ``advantages`` the estimate of A_t, which gets no gradient.
"""

import torch as th

Coefficient = float | th.Tensor


def policy_gradient(log_prob: th.Tensor, advantages: th.Tensor) -> th.Tensor:
    """
    Equation (2): L^PG = E[log pi(a|s) A].

    :param log_prob: log pi(a|s) in nats, shape ``(batch,)``
    :param advantages: advantage estimates, shape ``(batch,)``
    :return: the objective per sample, shape ``(batch,)``
    """
    return log_prob * advantages


def conservative_policy_iteration(ratio: th.Tensor, advantages: th.Tensor) -> th.Tensor:
    """
    Equation (6): L^CPI = E[r A], "no clipping or penalty" in Table 1.

    :param ratio: r = pi(a|s) / pi_old(a|s), shape ``(batch,)``
    :param advantages: advantage estimates, shape ``(batch,)``
    :return: the objective per sample, shape ``(batch,)``
    """
    return advantages * ratio


def clipped_surrogate(ratio: th.Tensor, advantages: th.Tensor, clip_range: Coefficient) -> th.Tensor:
    """
    Equation (7): L^CLIP = E[min(r A, clip(r, 1 - epsilon, 1 + epsilon) A)].

    :param ratio: r = pi(a|s) / pi_old(a|s), shape ``(batch,)``
    :param advantages: advantage estimates, shape ``(batch,)``
    :param clip_range: epsilon
    :return: the objective per sample, shape ``(batch,)``
    """
    clipped_ratio = th.clamp(ratio, 1 - clip_range, 1 + clip_range)  # type: ignore[arg-type]
    return th.min(advantages * ratio, advantages * clipped_ratio)


def kl_penalized_surrogate(
    ratio: th.Tensor,
    advantages: th.Tensor,
    kl: th.Tensor,
    kl_coef: Coefficient,
    clip_range: Coefficient | None = None,
) -> th.Tensor:
    """
    Equation (8): L^KLPEN = E[r A - beta KL[pi_old(.|s), pi(.|s)]].

    With ``clip_range`` the first term is that of equation (7) instead of (6): the penalty "in addition to" the clipped
    surrogate objective, as section 4 allows.

    :param ratio: r = pi(a|s) / pi_old(a|s), shape ``(batch,)``
    :param advantages: advantage estimates, shape ``(batch,)``
    :param kl: KL[pi_old(.|s), pi(.|s)] in nats, shape ``(batch,)``
    :param kl_coef: beta; at 0 the penalty is left out, whatever the KL
    :param clip_range: epsilon, or ``None`` for no clipping
    :return: the objective per sample, shape ``(batch,)``
    """
    if clip_range is None:
        surrogate = conservative_policy_iteration(ratio, advantages)
    else:
        surrogate = clipped_surrogate(ratio, advantages, clip_range)
    # 0 * inf would be NaN
    if isinstance(kl_coef, th.Tensor):
        return surrogate - th.where(kl_coef == 0, th.zeros_like(kl), kl_coef * kl)
    return surrogate if kl_coef == 0 else surrogate - kl_coef * kl
