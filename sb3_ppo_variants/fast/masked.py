"""contrib's policies with action masks, without distribution objects: its numbers and random draws."""

from typing import Any

import torch as th
from stable_baselines3.common.utils import obs_as_tensor
from torch.nn import functional as F

from sb3_ppo_variants import checks
from sb3_ppo_variants.kl import ClosedForm, form_of_parts, kl_categoricals
from sb3_ppo_variants.loss import Batch, Evaluation
from sb3_ppo_variants.masks import heads_of
from sb3_ppo_variants.policies import INVALID, NOTHING, Action, Given, Masked, Observations, is_of_contrib, latents


def lane(policy: Any) -> "StraightMasked | None":
    """A policy as PPO sees it."""
    return StraightMasked(policy) if is_of_contrib(policy) else None


class StraightMasked(Masked):
    """The operations of ``MaskableActorCriticPolicy`` and ``MaskableCategorical`` in a straight line."""

    def __init__(self, policy: Any) -> None:
        super().__init__(policy)
        self.heads = heads_of(policy.action_space)

    def _log_probs(self, latent: th.Tensor, masks: Any) -> list[th.Tensor]:
        """Log pi of all actions, for each part of an action."""
        logits = self.policy.action_net(latent)
        masks = th.as_tensor(masks, dtype=th.bool, device=logits.device)
        invalid = th.tensor(INVALID, dtype=logits.dtype, device=logits.device)
        found = []
        for head, mask in zip(logits.split(self.heads, dim=1), masks.split(self.heads, dim=1), strict=True):
            normalized = head - head.logsumexp(dim=-1, keepdim=True)
            masked = th.where(mask, normalized, invalid)
            found.append(masked - masked.logsumexp(dim=-1, keepdim=True))
        return found

    @th.no_grad()
    def act(self, observations: Observations, given: Given = NOTHING) -> Action:
        """The next step of a rollout, as ``FeedForward.act``."""
        checks.check_observation(observations)
        obs_tensor = obs_as_tensor(observations, self.policy.device)
        latent_pi, latent_vf = latents(self.policy, obs_tensor)
        values, heads = self.policy.value_net(latent_vf), self._log_probs(latent_pi, given["action_masks"])
        if not (checks.all_finite(values.cpu().numpy()) and all(checks.all_finite(head.cpu().numpy()) for head in heads)):
            raise checks.NonFinitePolicyError.of(self.policy)
        actions = [th.multinomial(F.softmax(head, dim=-1), 1, True) for head in heads]
        log_probs = [head.gather(-1, action) for head, action in zip(heads, actions, strict=True)]
        found = th.cat(actions, dim=1).reshape((-1, *self.policy.action_space.shape))  # type: ignore[misc]
        return Action(obs_tensor, found.cpu().numpy(), values, th.cat(log_probs, dim=1).sum(dim=1))

    def evaluate(self, batch: Batch) -> Evaluation:
        """``policy.evaluate_actions``, and what the KL of its distributions is made of."""
        latent_pi, latent_vf = latents(self.policy, batch.observations)
        heads = self._log_probs(latent_pi, batch.given["action_masks"])
        actions = batch.actions.view(-1, len(self.heads)).long().unbind(dim=1)
        log_probs = [head.gather(-1, action[:, None]).squeeze(-1) for head, action in zip(heads, actions, strict=True)]
        values = self.policy.value_net(latent_vf)
        entropies = []
        for head, mask in zip(heads, batch.given["action_masks"].bool().split(self.heads, dim=1), strict=True):
            p_log_p = head * F.softmax(head, dim=-1)
            entropies.append(-th.where(mask, p_log_p, th.tensor(0.0, device=head.device)).sum(-1))
        log_prob, entropy = (th.stack(numbers, dim=1).sum(dim=1) for numbers in (log_probs, entropies))
        return Evaluation(values.flatten(), log_prob, entropy, lambda: _form(heads))


def _form(heads: list[th.Tensor]) -> ClosedForm:
    return form_of_parts(heads) if len(heads) > 1 else ClosedForm(kl_categoricals, (heads[0],))
