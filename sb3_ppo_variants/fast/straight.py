"""SB3's policies without distribution objects, or at least without their checks of arguments: its numbers and draws."""

import math
from typing import Any

import torch as th
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.distributions import Normal
from torch.nn import functional as F

from sb3_ppo_variants import checks
from sb3_ppo_variants.kl import ClosedForm, form_of_parts, kl_normal
from sb3_ppo_variants.loss import Batch, Evaluation
from sb3_ppo_variants.masks import heads_of
from sb3_ppo_variants.policies import (
    LOG_SQRT_2PI,
    NOTHING,
    Action,
    FeedForward,
    Given,
    Observations,
    as_tensors,
    has_hooks,
    is_standard_mlp,
    latents,
    networks,
    vector,
)

OWN = (ActorCriticPolicy, ActorCriticCnnPolicy, MultiInputActorCriticPolicy)
CATEGORICAL = (CategoricalDistribution, MultiCategoricalDistribution)


def lane(policy: ActorCriticPolicy) -> "Straight | None":
    """A policy as PPO sees it."""
    if type(policy) not in OWN or policy.device.type != "cpu" or has_hooks(policy):
        return None
    has_linear_ends = type(policy.action_net) is type(policy.value_net) is nn.Linear
    if not has_linear_ends or any(parameter.dtype != th.float32 for parameter in policy.parameters()):
        return None
    if type(policy.action_dist) is StateDependentNoiseDistribution:
        return StraightSde(policy)
    if type(policy.action_dist) not in (DiagGaussianDistribution, *CATEGORICAL):
        return None
    return StraightMlp(policy) if is_standard_mlp(policy) else Straight(policy)


class Straight(FeedForward):
    """Rollouts with the operations of ``ActorCriticPolicy.forward`` and of its distribution. The networks may be any."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__(policy)
        self.heads = heads_of(policy.action_space) if isinstance(policy.action_dist, CATEGORICAL) else ()
        self.shape_of_actions = (-1, *policy.action_space.shape)  # type: ignore[misc]
        # What depends on it alone is computed when it changes
        self.log_std = th.empty(0)

    def act(self, observations: Observations, given: Given = NOTHING) -> Action:
        """The next step of a rollout, as ``FeedForward.act``."""
        with self._blamed(observations):
            return self._act(observations)

    @th.no_grad()
    def _act(self, observations: Observations) -> Action:
        obs_tensor = as_tensors(observations)
        actions, values, log_probs = self._draw(obs_tensor)
        found = actions.numpy().reshape(self.shape_of_actions)
        if not (checks.all_finite(values.numpy()) and checks.all_finite(found)):
            raise checks.NonFinitePolicyError.of(self.policy)
        return Action(obs_tensor, found, values, log_probs)

    def _forward(self, observations: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """What the distribution is made of, and the values, of shape ``(batch, 1)``."""
        latent_pi, latent_vf = latents(self.policy, observations)
        return self.policy.action_net(latent_pi), self.policy.value_net(latent_vf)

    def _draw(self, observations: PyTorchObs) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Actions, values and log probabilities of the actions."""
        outputs, values = self._forward(observations)
        if self.heads:
            logits = self._logits(outputs)
            # Those of -inf are of actions that are never taken
            if any(not checks.all_finite(head.numpy()) and head.isnan().any() for head in logits):
                raise checks.NonFinitePolicyError.of(self.policy)
            parts = [th.multinomial(F.softmax(head, dim=-1), 1, True) for head in logits]
            log_probs = [head.gather(-1, part).squeeze(-1) for head, part in zip(logits, parts, strict=True)]
            return th.cat(parts, dim=1), values, _sum(log_probs)
        log_std = self.policy.log_std
        if not th.equal(self.log_std, log_std):
            self.log_std = log_std.clone()
            self.std = th.ones_like(outputs) * self.log_std.exp()
            self.double_variance = 2 * self.std**2
            self.log_stds = self.std.log()
        actions = outputs + th.empty_like(outputs).normal_().mul_(self.std)
        squares = (actions - outputs).square_().neg_()
        return actions, values, squares.div_(self.double_variance).sub_(self.log_stds).sub_(LOG_SQRT_2PI).sum(dim=1)

    def _logits(self, outputs: th.Tensor) -> list[th.Tensor]:
        """Log pi of all actions, for each part of an action."""
        return [head - head.logsumexp(dim=-1, keepdim=True) for head in outputs.split(self.heads, dim=1)]


class StraightMlp(Straight):
    """A policy that sees a vector, without calls of its layers, on the parameters that there are at each call."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__(policy)
        # Dictionaries of the parameters of linear layers, and functions
        self.pi, self.vf = (
            [layer._parameters if type(layer) is nn.Linear else layer for layer in layers] for layers in networks(policy)
        )

    def act(self, observations: Observations, given: Given = NOTHING) -> Action:
        """The next step of a rollout, as ``FeedForward.act``."""
        checks.check_observation(observations)
        return self._act(observations)

    def _forward(self, observations: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        latent = vector(self.policy, observations)
        return _apply(self.pi, latent), _apply(self.vf, latent)

    def evaluate(self, batch: Batch) -> Evaluation:
        """``policy.evaluate_actions``, and what the KL of its distributions is made of."""
        outputs, values = self._forward(batch.observations)
        if self.heads:
            logits = self._logits(outputs)
            actions = batch.actions.long().view(-1, len(logits), 1).unbind(dim=1)
            log_probs = [head.gather(-1, action).squeeze(-1) for head, action in zip(logits, actions, strict=True)]
            # The clamp keeps logits of -inf from becoming NaN
            p_log_p = [th.clamp(head, min=th.finfo(head.dtype).min) * F.softmax(head, dim=-1) for head in logits]
            entropy = _sum([-part.sum(-1) for part in p_log_p])
            return Evaluation(values.flatten(), _sum(log_probs), entropy, lambda: form_of_parts(logits))
        form = self._form(outputs)
        std = form.parameters[1]
        log_prob = (-((batch.actions - outputs) ** 2) / (2 * std**2) - std.log() - LOG_SQRT_2PI).sum(dim=1)
        entropy = (0.5 + 0.5 * math.log(2 * math.pi) + th.log(std)).sum(dim=1)
        return Evaluation(values.flatten(), log_prob, entropy, lambda: form)

    def _form(self, outputs: th.Tensor) -> ClosedForm:
        if self.heads:
            return form_of_parts(self._logits(outputs))
        return ClosedForm(kl_normal, (outputs, th.ones_like(outputs) * self.policy.log_std.exp()))

    @th.no_grad()
    def _closed_forms(self, chunks: list[Any]) -> list[ClosedForm]:
        return [self._form(_apply(self.pi, vector(self.policy, observations))) for observations, _ in chunks]


class StraightSde(Straight):
    """Rollouts with gSDE, with SB3's distribution, but without checks of what it is made of."""

    def _draw(self, observations: PyTorchObs) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        policy, distribution = self.policy, self.policy.action_dist
        assert isinstance(distribution, StateDependentNoiseDistribution)
        latent_pi, latent_vf = latents(policy, observations)
        distribution._latent_sde = latent_pi
        variance = th.mm(latent_pi**2, distribution.get_std(policy.log_std) ** 2)
        std = th.sqrt(variance + distribution.epsilon)
        distribution.distribution = Normal(policy.action_net(latent_pi), std, validate_args=False)
        actions = distribution.get_actions()
        return actions, policy.value_net(latent_vf), distribution.log_prob(actions)


def _apply(layers: list[Any], latent: th.Tensor) -> th.Tensor:
    for layer in layers:
        latent = F.linear(latent, layer["weight"], layer["bias"]) if isinstance(layer, dict) else layer(latent)
    return latent


def _sum(parts: list[th.Tensor]) -> th.Tensor:
    """Over the parts of an action."""
    return parts[0] if len(parts) == 1 else th.stack(parts, dim=1).sum(dim=1)
