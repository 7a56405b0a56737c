"""What the two variants with a KL penalty share: the objective of equation (8)."""

from collections.abc import Mapping

import torch as th

from sb3_ppo_variants.loss import SurrogateTerms
from sb3_ppo_variants.objectives import Coefficient, kl_penalized_surrogate
from sb3_ppo_variants.proximal import ProximalPolicyOptimization


class KLPenaltyPPO(ProximalPolicyOptimization):
    """
    PPO with the KL-penalized objective L^KLPEN, equation (8) of https://arxiv.org/abs/1707.06347, and, with a
    ``clip_range``, the clipped surrogate in it. A subclass says where beta comes from.
    """

    #: The current beta: that of the next policy update
    kl_coef: float

    def coefficients(self) -> dict[str, float]:
        """As in the base class, and beta as ``kl_coef``."""
        return {**super().coefficients(), "kl_coef": self.kl_coef}

    def surrogate(self, terms: SurrogateTerms, coef: Mapping[str, Coefficient]) -> th.Tensor:
        """L^KLPEN, equation (8), or L^CPI, equation (6), if beta is 0."""
        beta, ratio = coef["kl_coef"], terms.ratio
        # Not computed where it has no weight: a distribution may have no closed form of it
        kl = terms.kl if isinstance(beta, th.Tensor) or beta > 0 else th.zeros_like(ratio)
        return kl_penalized_surrogate(ratio, terms.advantages, kl, beta, coef.get("clip_range"))
