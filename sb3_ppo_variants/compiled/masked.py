"""Policies with action masks as compiled code wants them: one masked log-softmax over consecutive parts of equal size."""

from typing import Any

import torch as th
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

from sb3_ppo_variants.compiled.recurrent import Scanned
from sb3_ppo_variants.kinds import Masked, kind_of, masked_log_probs
from sb3_ppo_variants.kl import form_of_parts
from sb3_ppo_variants.loss import Batch, Evaluation
from sb3_ppo_variants.masks import heads_of
from sb3_ppo_variants.policies import FeedForward, is_of_contrib, latents


def compiled_kind(policy: Any, sequence_length: int | None = None) -> FeedForward:
    """A policy as the compiled step sees it."""
    if isinstance(policy, RecurrentActorCriticPolicy):
        return Scanned(policy, sequence_length)
    return SideBySide(policy) if is_of_contrib(policy) else kind_of(policy)


class SideBySide(Masked):
    """The numbers of ``MaskableActorCriticPolicy`` up to rounding."""

    def evaluate(self, batch: Batch) -> Evaluation:
        """``policy.evaluate_actions``, and what the KL of its distributions is made of."""
        latent_pi, latent_vf = latents(self.policy, batch.observations)
        heads, action_masks = heads_of(self.policy.action_space), batch.given["action_masks"]
        parts = masked_log_probs(self.policy.action_net(latent_pi), action_masks, heads)
        actions = batch.actions.view(-1, len(heads)).long()
        log_prob = entropy = th.zeros_like(batch.returns)
        position = 0
        for log_probs in parts:
            taken = actions[:, position : position + log_probs.shape[1], None]
            # Instead of gather, whose derivative is slower
            is_taken = taken == th.arange(log_probs.shape[2], device=taken.device)
            log_prob = log_prob + th.where(is_taken, log_probs, 0).sum(dim=(1, 2))
            # An action of probability 0 adds nothing
            entropy = entropy - (log_probs.exp() * log_probs).sum(dim=(1, 2))
            position += log_probs.shape[1]
        return Evaluation(self.policy.value_net(latent_vf).flatten(), log_prob, entropy, lambda: form_of_parts(parts))
