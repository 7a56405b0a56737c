"""Rollouts with gSDE without the checks of the distribution's arguments."""

import torch as th
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from torch.distributions import Normal

from sb3_ppo_variants import checks
from sb3_ppo_variants.policies import NOTHING, Action, FeedForward, Given, Observations, has_hooks, is_of_libraries, latents


def lane(policy: ActorCriticPolicy) -> "StraightSde | None":
    """A policy as PPO sees it."""
    is_own = type(policy) in (ActorCriticPolicy, ActorCriticCnnPolicy, MultiInputActorCriticPolicy)
    has_sde = type(policy.action_dist) is StateDependentNoiseDistribution
    return StraightSde(policy) if is_own and has_sde and is_of_libraries(policy) and not has_hooks(policy) else None


class StraightSde(FeedForward):
    """The operations of ``ActorCriticPolicy.forward``: the same numbers and random draws."""

    @th.no_grad()
    def act(self, observations: Observations, given: Given = NOTHING) -> Action:
        """The next step of a rollout, as ``FeedForward.act``."""
        checks.check_observation(observations)
        policy, distribution = self.policy, self.policy.action_dist
        assert isinstance(distribution, StateDependentNoiseDistribution)
        obs_tensor = obs_as_tensor(observations, policy.device)
        latent_pi, latent_vf = latents(policy, obs_tensor)
        values, mean = policy.value_net(latent_vf), policy.action_net(latent_pi)
        distribution._latent_sde = latent_pi
        variance = th.mm(latent_pi**2, distribution.get_std(policy.log_std) ** 2)
        distribution.distribution = Normal(mean, th.sqrt(variance + distribution.epsilon), validate_args=False)
        actions = distribution.get_actions()
        log_probs = distribution.log_prob(actions)
        found = actions.reshape((-1, *policy.action_space.shape)).cpu().numpy()  # type: ignore[misc]
        if not (checks.all_finite(found) and checks.all_finite(values.cpu().numpy())):
            raise checks.NonFinitePolicyError.of(policy)
        return Action(obs_tensor, found, values, log_probs)
