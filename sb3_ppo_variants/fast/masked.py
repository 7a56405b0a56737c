"""contrib's policies with action masks, without distribution objects: its numbers and random draws."""

from typing import Any

import torch as th
from sb3_contrib.common.maskable import distributions
from stable_baselines3.common.utils import obs_as_tensor
from torch.nn import functional as F

from sb3_ppo_variants import checks
from sb3_ppo_variants.kinds import Masked
from sb3_ppo_variants.kl import form_of_parts
from sb3_ppo_variants.loss import Batch, Evaluation
from sb3_ppo_variants.masks import heads_of
from sb3_ppo_variants.policies import INVALID, NOTHING, Action, Given, Observations, is_of_contrib, latents

# Before 2.8, contrib computes probabilities earlier, and so adds up gradients in another order
IS_OLD = hasattr(distributions, "logits_to_probs")
# Actions of a part from which on the underflow of those that are invalid takes time
MANY = 64


def lane(policy: Any) -> "StraightMasked | None":
    """A policy as PPO sees it."""
    return StraightMasked(policy) if is_of_contrib(policy) and not IS_OLD else None


class StraightMasked(Masked):
    """The operations of ``MaskableActorCriticPolicy`` and ``MaskableCategorical`` in a straight line."""

    def __init__(self, policy: Any) -> None:
        super().__init__(policy)
        self.heads = heads_of(policy.action_space)

    def _log_probs(self, latent: th.Tensor, masks: th.Tensor) -> list[th.Tensor]:
        """Log pi of all actions, for each part of an action, with masks of 0 and 1."""
        logits = self.policy.action_net(latent)
        found = []
        parts = (tensor.split(self.heads, dim=1) for tensor in (logits, masks, INVALID * (1 - masks)))
        for head, mask, penalty in zip(*parts, strict=True):
            normalized = head - head.logsumexp(dim=-1, keepdim=True)
            # By products instead of where, which is slow
            masked = normalized * mask + penalty
            total = _LogSumExp.apply(masked, mask) if mask.shape[1] >= MANY else masked.logsumexp(dim=-1, keepdim=True)
            found.append(masked - total)
        return found

    def _masks(self, given: Given) -> th.Tensor:
        weight: Any = self.policy.action_net.weight
        return th.as_tensor(given["action_masks"], dtype=weight.dtype, device=weight.device)

    @th.no_grad()
    def act(self, observations: Observations, given: Given = NOTHING) -> Action:
        """The next step of a rollout, as ``FeedForward.act``."""
        checks.check_observation(observations)
        obs_tensor = obs_as_tensor(observations, self.policy.device)
        latent_pi, latent_vf = latents(self.policy, obs_tensor)
        values, heads = self.policy.value_net(latent_vf), self._log_probs(latent_pi, self._masks(given))
        if not (checks.all_finite(values.cpu().numpy()) and all(checks.all_finite(head.cpu().numpy()) for head in heads)):
            raise checks.NonFinitePolicyError.of(self.policy)
        actions = [th.multinomial(F.softmax(head, dim=-1), 1, True) for head in heads]
        log_probs = [head.gather(-1, action) for head, action in zip(heads, actions, strict=True)]
        found = th.cat(actions, dim=1).reshape((-1, *self.policy.action_space.shape))  # type: ignore[misc]
        return Action(obs_tensor, found.cpu().numpy(), values, th.cat(log_probs, dim=1).sum(dim=1))

    def evaluate(self, batch: Batch) -> Evaluation:
        """``policy.evaluate_actions``, and what the KL of its distributions is made of."""
        latent_pi, latent_vf = latents(self.policy, batch.observations)
        masks = self._masks(batch.given)
        heads = self._log_probs(latent_pi, masks)
        actions = batch.actions.view(-1, len(self.heads)).long().unbind(dim=1)
        log_probs = [head.gather(-1, action[:, None]).squeeze(-1) for head, action in zip(heads, actions, strict=True)]
        values = self.policy.value_net(latent_vf)
        parts = zip(heads, masks.split(self.heads, dim=1), strict=True)
        entropies = [-(head * F.softmax(head, dim=-1) * mask).sum(-1) for head, mask in parts]
        log_prob, entropy = (th.stack(numbers, dim=1).sum(dim=1) for numbers in (log_probs, entropies))
        return Evaluation(values.flatten(), log_prob, entropy, lambda: form_of_parts(heads))


class _LogSumExp(th.autograd.Function):
    """``logsumexp`` over the last dimension, bit for bit, but without exp of invalid actions, whose underflow is slow."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor, mask: th.Tensor) -> th.Tensor:
        largest = x.amax(dim=-1, keepdim=True)
        result = ((x - largest).mul_(mask).exp_().mul_(mask)).sum(dim=-1, keepdim=True).log_().add_(largest)
        ctx.save_for_backward(x, mask, result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: th.Tensor) -> tuple[th.Tensor, None]:
        x, mask, result = ctx.saved_tensors
        # What this gives invalid actions, the product of their logits with the mask takes away
        return gradients[0] * (x - result).mul_(mask).exp_(), None
