"""
Vanilla policy gradient with adaptive step size: section 6.2 of the PPO paper. Its footnote names homework 4 of
https://github.com/berkeleydeeprlcourse/homework, whose numbers are the defaults.
"""

from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch.nn import functional as F

from sb3_ppo_variants.adaptive import AdaptiveLearningRate
from sb3_ppo_variants.objectives import policy_gradient
from sb3_ppo_variants.ppo import ProximalPolicyOptimization

# Divided or multiplied by 1.5 where the KL is more than twice, or less than half, its target. The homework has no
# bounds: these are not meant to be reached
HOMEWORK_4 = AdaptiveLearningRate(kl_target=2e-3, initial=1e-3, bounds=(1e-7, 1.0))


class VanillaPolicyGradient(ProximalPolicyOptimization):
    """
    Per rollout, one step of Adam along the gradient of L^PG, equation (2), with a step size that follows the KL. The
    value function, which must not share parameters with the policy, is then fitted to the returns by an optimizer of its own.

    :param policy: the policy to use: MlpPolicy, ...
    :param env: the environment to learn from
    :param learning_rate: Adam's step size for the policy
    :param n_value_epochs: number of passes over the rollout of the value function
    :param value_learning_rate: Adam's step size for the value function
    :param value_batch_size: minibatch size of the value function
    :param kwargs: other arguments of ``ProximalPolicyOptimization``, but for those of its minibatches and of its clipping
    """

    objective = staticmethod(policy_gradient)

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = HOMEWORK_4,
        n_value_epochs: int = 10,
        value_learning_rate: float = 1e-3,
        value_batch_size: int = 64,
        **kwargs: Any,
    ) -> None:
        self.n_value_epochs = n_value_epochs
        self.value_learning_rate = value_learning_rate
        self.value_batch_size = value_batch_size
        step = {"n_epochs": 1, "clip_range": None, "vf_coef": 0.0, "max_grad_norm": None, "normalize_advantage": "batch"}
        super().__init__(policy, env, learning_rate, **{**step, **kwargs})

    def _setup_model(self) -> None:
        # The whole rollout
        self.batch_size = self.n_steps * self.n_envs
        super()._setup_model()
        modules = (self.policy.mlp_extractor.value_net, self.policy.value_net)
        parameters = [parameter for module in modules for parameter in module.parameters()]
        self.value_optimizer = th.optim.Adam(parameters, lr=self.value_learning_rate, eps=1e-5)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        return [*state_dicts, "value_optimizer"], tensors

    def train(self) -> None:
        """One step of the policy, then the value function."""
        super().train()
        for _ in range(self.n_value_epochs):
            for data in self.rollout_buffer.get(self.value_batch_size):
                loss = F.mse_loss(self.policy.predict_values(data.observations).flatten(), data.returns)
                self.value_optimizer.zero_grad()
                loss.backward()
                self.value_optimizer.step()
