"""A2C with the trust region of ACER (Wang et al. 2016, https://arxiv.org/abs/1611.01224)."""

from copy import deepcopy
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import explained_variance, polyak_update
from torch.nn import functional as F

from benchmarks.contestants.quick_rollouts import A2C
from benchmarks.contestants.trust_region import project
from sb3_ppo_variants.kl import closed_form, kl_from_parameters


class A2CTrustRegion(A2C):
    """
    A2C whose gradient with respect to the statistics of the policy (for a Gaussian, mean and standard deviation) is kept from
    leading away from an average of the policies so far: section 3.3 of ACER, without its replay.

    :param policy: the policy to use: MlpPolicy, CnnPolicy, ...
    :param env: the environment to learn from, with actions that are Box or Discrete
    :param delta: bound on the change of KL[pi_average, pi]
    :param alpha: weight of the past in the average of the parameters
    :param kwargs: the other arguments of SB3's ``A2C``
    :raises ValueError: if the actions are others
    """

    average_policy: ActorCriticPolicy

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        *args: Any,
        delta: float = 1.0,
        alpha: float = 0.99,
        **kwargs: Any,
    ) -> None:
        self.delta = delta
        self.alpha = alpha
        super().__init__(policy, env, *args, **kwargs)

    def _setup_model(self) -> None:
        if not isinstance(self.action_space, spaces.Box | spaces.Discrete):
            raise ValueError(f"env must have actions that are Box or Discrete, but they are {self.action_space}")
        super()._setup_model()
        self.average_policy = deepcopy(self.policy)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        return [*state_dicts, "average_policy"], tensors

    def train(self) -> None:
        """Update policy and value function by one gradient step on the whole rollout, then the average policy."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        data = next(self.rollout_buffer.get(batch_size=None))
        actions = data.actions.long().flatten() if isinstance(self.action_space, spaces.Discrete) else data.actions
        advantages = data.advantages
        if self.normalize_advantage:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)

        distribution = self.policy.get_distribution(data.observations)
        pi = closed_form(distribution)
        with th.no_grad():
            average = closed_form(self.average_policy.get_distribution(data.observations))
        entropy = distribution.entropy()
        assert entropy is not None
        kl = kl_from_parameters(average.parameters, pi)
        objective = advantages * distribution.log_prob(actions) + self.ent_coef * entropy
        z = project(self._gradient(objective, pi.parameters), self._gradient(kl, pi.parameters), self.delta)
        # The gradient of this by the statistics is z
        policy_loss = -(z * _side_by_side(pi.parameters)).sum(dim=1).mean()
        value_loss = F.mse_loss(self.policy.predict_values(data.observations).flatten(), data.returns)

        self.policy.optimizer.zero_grad()
        (policy_loss + self.vf_coef * value_loss).backward()
        th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        polyak_update(self.policy.parameters(), self.average_policy.parameters(), tau=1 - self.alpha)

        self._n_updates += 1
        explained = explained_variance(self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/explained_variance", explained)
        self.logger.record("train/entropy_loss", -entropy.mean().item())
        self.logger.record("train/policy_objective", objective.mean().item())
        self.logger.record("train/value_loss", value_loss.item())
        self.logger.record("train/kl_to_average", kl.mean().item())

    @staticmethod
    def _gradient(values: th.Tensor, statistics: tuple[th.Tensor, ...]) -> th.Tensor:
        return _side_by_side(th.autograd.grad(values.sum(), statistics, retain_graph=True))


def _side_by_side(statistics: tuple[th.Tensor, ...]) -> th.Tensor:
    return th.cat([one.flatten(1) for one in statistics], dim=1)
