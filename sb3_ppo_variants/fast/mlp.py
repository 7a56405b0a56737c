"""``MlpPolicy`` on vectors, with a Gaussian or categorical distribution, without module calls and distribution objects."""

import math
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.nn import functional as F

from sb3_ppo_variants import checks
from sb3_ppo_variants.kl import ClosedForm, kl_categoricals, kl_normal
from sb3_ppo_variants.loss import Batch, Evaluation
from sb3_ppo_variants.policies import (
    LOG_SQRT_2PI,
    NOTHING,
    Action,
    FeedForward,
    Given,
    Observations,
    is_standard_mlp,
    networks,
)


def lane(policy: ActorCriticPolicy) -> "StraightMlp | None":
    """A policy as PPO sees it."""
    return StraightMlp(policy) if is_standard_mlp(policy) else None


class StraightMlp(FeedForward):
    """The operations of ``ActorCriticPolicy`` in a straight line, on the parameters that there are at each call."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__(policy)
        # Dictionaries of the parameters of linear layers, and functions
        self.pi, self.vf = (
            [layer._parameters if type(layer) is nn.Linear else layer for layer in layers] for layers in networks(policy)
        )
        self.is_gaussian = isinstance(policy.action_dist, DiagGaussianDistribution)
        # What depends on it alone is computed when it changes
        self.log_std = th.empty(0)

    def _forward(self, observations: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        observations = observations.float()
        return _apply(self.pi, observations), _apply(self.vf, observations)

    @th.no_grad()
    def act(self, observations: Observations, given: Given = NOTHING) -> Action:
        """The next step of a rollout, as ``FeedForward.act``."""
        assert isinstance(observations, np.ndarray)
        checks.check_observation(observations)
        obs_tensor = th.from_numpy(observations)
        outputs, values = self._forward(obs_tensor)
        if not (checks.all_finite(outputs.numpy()) and checks.all_finite(values.numpy())):
            raise checks.NonFinitePolicyError.of(self.policy)
        if self.is_gaussian:
            log_std = self.policy.log_std
            if not th.equal(self.log_std, log_std):
                self.log_std = log_std.clone()
                self.std = th.ones_like(outputs) * self.log_std.exp()
                self.double_variance = 2 * self.std**2
                self.log_stds = self.std.log()
            actions = outputs + th.empty_like(outputs).normal_().mul_(self.std)
            if not checks.all_finite(actions.numpy()):
                raise checks.NonFinitePolicyError.of(self.policy)
            squares = (actions - outputs).square_().neg_()
            log_probs = squares.div_(self.double_variance).sub_(self.log_stds).sub_(LOG_SQRT_2PI).sum(dim=1)
            return Action(obs_tensor, actions.numpy(), values, log_probs)
        logits = outputs - outputs.logsumexp(dim=-1, keepdim=True)
        actions = th.multinomial(F.softmax(logits, dim=-1), 1, True)
        return Action(obs_tensor, actions.squeeze(1).numpy(), values, logits.gather(-1, actions).squeeze(-1))

    def evaluate(self, batch: Batch) -> Evaluation:
        """``policy.evaluate_actions``, and what the KL of its distributions is made of."""
        outputs, values = self._forward(batch.observations)
        form = self._form(outputs)
        if self.is_gaussian:
            std = form.parameters[1]
            log_prob = (-((batch.actions - outputs) ** 2) / (2 * std**2) - std.log() - LOG_SQRT_2PI).sum(dim=1)
            entropy = (0.5 + 0.5 * math.log(2 * math.pi) + th.log(std)).sum(dim=1)
            return Evaluation(values.flatten(), log_prob, entropy, lambda: form)
        (logits,) = form.parameters
        log_prob = logits.gather(-1, batch.actions.unsqueeze(-1)).squeeze(-1)
        # The clamp keeps logits of -inf from becoming NaN
        p_log_p = th.clamp(logits, min=th.finfo(logits.dtype).min) * F.softmax(logits, dim=-1)
        return Evaluation(values.flatten(), log_prob, -p_log_p.sum(-1), lambda: form)

    def _form(self, outputs: th.Tensor) -> ClosedForm:
        if self.is_gaussian:
            return ClosedForm(kl_normal, (outputs, th.ones_like(outputs) * self.policy.log_std.exp()))
        return ClosedForm(kl_categoricals, (outputs - outputs.logsumexp(dim=-1, keepdim=True),))

    @th.no_grad()
    def _closed_forms(self, chunks: list[Any]) -> list[ClosedForm]:
        return [self._form(_apply(self.pi, observations.float())) for observations, _ in chunks]


def _apply(layers: list[Any], latent: th.Tensor) -> th.Tensor:
    for layer in layers:
        latent = F.linear(latent, layer["weight"], layer["bias"]) if isinstance(layer, dict) else layer(latent)
    return latent
