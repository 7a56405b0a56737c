"""The trust region of ACER (Wang et al. 2016, https://arxiv.org/abs/1611.01224), section 3.3."""

import torch as th


def project(gradient: th.Tensor, kl_gradient: th.Tensor, delta: float) -> th.Tensor:
    """
    Equation (12): z = g - max(0, (k^T g - delta) / |k|^2) k, which is of all z with k^T z <= delta the nearest to g.

    :param gradient: g, gradient of each sample's objective by the statistics of the policy, shape ``(batch, n_statistics)``
    :param kl_gradient: k, that of KL[pi_average, pi] by the same
    :param delta: by how much a step along z may raise the KL, to first order; more than 0
    :return: z, shape ``(batch, n_statistics)``
    """
    # Minus infinity where k is 0
    excess = ((kl_gradient * gradient).sum(dim=1) - delta) / (kl_gradient * kl_gradient).sum(dim=1)
    return gradient - excess.clamp(min=0)[:, None] * kl_gradient
