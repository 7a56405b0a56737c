"""The loss of a minibatch, equation (9), as a pure function that interpreted and compiled updates share."""

from collections.abc import Callable, Mapping
from functools import cached_property

import torch as th
from torch.nn import functional as F

from sb3_ppo_variants.inference import Evaluation
from sb3_ppo_variants.kl import kl_from_parameters
from sb3_ppo_variants.objectives import Coefficient
from sb3_ppo_variants.rollout import RolloutData

# What `ppo_loss` measures beside the gradient, in this order; the names are SB3's
METRICS = ("loss", "policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction")
# The losses come before it. It, and what follows, may overflow with the ratio where the objective knows no ratio, as L^PG
APPROX_KL = METRICS.index("approx_kl")


class SurrogateTerms:
    """
    What a surrogate objective is made of, for one minibatch. All tensors have shape ``(batch,)``.

    :param log_prob: log pi(a|s) in nats, with gradient
    :param old_log_prob: log pi_old(a|s) in nats
    :param advantages: advantage estimates, normalised if the algorithm normalises them
    :param kl: computes KL[pi_old(.|s), pi(.|s)] in nats
    """

    def __init__(
        self, log_prob: th.Tensor, old_log_prob: th.Tensor, advantages: th.Tensor, kl: Callable[[], th.Tensor]
    ) -> None:
        self.log_prob = log_prob
        self.advantages = advantages
        self.log_ratio = log_prob - old_log_prob
        self.ratio = th.exp(self.log_ratio)
        self._kl = kl

    @cached_property
    def kl(self) -> th.Tensor:
        """KL[pi_old(.|s), pi(.|s)] in nats, exact; computed when first asked for, so that it is free where unused."""
        return self._kl()


Surrogate = Callable[[SurrogateTerms, Mapping[str, Coefficient]], th.Tensor]


def standardize(advantages: th.Tensor) -> th.Tensor:
    """
    Shift and scale the advantages of a minibatch to mean 0 and deviation 1.

    :param advantages: shape ``(batch,)``
    :return: shape ``(batch,)``; a single sample, which has no deviation, as it was
    """
    if len(advantages) == 1:
        return advantages
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def ppo_loss(
    surrogate: Surrogate,
    batch: RolloutData,
    evaluation: Evaluation,
    coef: Mapping[str, Coefficient],
    standardizes: bool,
) -> tuple[th.Tensor, th.Tensor]:
    """
    Equation (9) with its sign turned: - L^S + c1 L^VF - c2 S, each a mean over the minibatch.

    :param surrogate: the surrogate objective L^S, per sample
    :param batch: the minibatch, with pi_old
    :param evaluation: what the policy says of it
    :param coef: coefficients by name: ``vf_coef`` (c1), ``ent_coef`` (c2), and ``clip_range``, ``clip_range_vf`` where there
        is such clipping
    :param standardizes: whether the advantages are standardised in the minibatch
    :return: the loss and, without gradient, the values of ``METRICS``
    :raises NotImplementedError: if the surrogate asks for the KL, and that is not known
    """

    def kl() -> th.Tensor:
        if not batch.old_parameters:
            raise NotImplementedError(
                "KL[pi_old, pi] is not known: the policy cannot be copied, its distribution has no closed form of the KL, or "
                "get_distribution does not return the distribution that evaluate_actions uses"
            )
        return kl_from_parameters(batch.old_parameters, evaluation.closed_form())

    advantages = standardize(batch.advantages) if standardizes else batch.advantages
    terms = SurrogateTerms(evaluation.log_prob, batch.old_log_prob, advantages, kl)
    policy_loss = -surrogate(terms, coef).mean()

    values = evaluation.values
    if "clip_range_vf" in coef:
        largest = coef["clip_range_vf"]
        values = batch.old_values + th.clamp(values - batch.old_values, -largest, largest)  # type: ignore[arg-type]
    value_loss = F.mse_loss(batch.returns, values)

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
