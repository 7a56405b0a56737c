"""PPO with the clipped surrogate objective: section 3 of the paper."""

from collections.abc import Mapping

import torch as th

from sb3_ppo_variants import checks
from sb3_ppo_variants.loss import SurrogateTerms
from sb3_ppo_variants.objectives import Coefficient, clipped_surrogate
from sb3_ppo_variants.proximal import ProximalPolicyOptimization


class PPOClip(ProximalPolicyOptimization):
    """
    PPO with the clipped surrogate objective L^CLIP, equation (7) of https://arxiv.org/abs/1707.06347.

    With ``compile=False`` it computes bit for bit what SB3's ``PPO`` computes. The arguments are those of SB3's ``PPO``,
    described in ``ProximalPolicyOptimization``, and

    :param clip_range: epsilon, a float or a schedule
    :param target_kl: end an update when the approximate KL of a minibatch exceeds 1.5 times this, in nats (not in the
        paper); ``None`` for never
    """

    def _check_arguments(self) -> None:
        super()._check_arguments()
        checks.check_coefficient("clip_range", self.clip_range, above=0, infinite=True)
        checks.check_number("target_kl", self.target_kl, above=0, optional=True, infinite=True)

    def surrogate(self, terms: SurrogateTerms, coef: Mapping[str, Coefficient]) -> th.Tensor:
        """L^CLIP, equation (7)."""
        return clipped_surrogate(terms.ratio, terms.advantages, coef["clip_range"])
