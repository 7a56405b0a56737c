"""
Actor-critic with experience replay: ACER (Wang et al. 2016, https://arxiv.org/abs/1611.01224) for discrete actions. Numbers of
equations are the paper's; the defaults are its own, or those of openai/baselines.
"""

from copy import deepcopy
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from benchmarks.contestants.trust_region import project

# Probabilities that are divided by are no smaller
SMALLEST = 1e-6


def retrace(
    rewards: th.Tensor,
    dones: th.Tensor,
    action_values: th.Tensor,
    values: th.Tensor,
    ratios: th.Tensor,
    last_values: th.Tensor,
    gamma: float,
) -> th.Tensor:
    """
    Equation (5): Q^ret_t = r_t + gamma (min(1, rho_t+1) (Q^ret_t+1 - Q(x_t+1, a_t+1)) + V(x_t+1)), where the outer bracket is
    0 if the episode ends with step t, and V(x_T) after the last step.

    :param rewards: r_t, shape ``(n_steps, n_segments)``, as all but ``last_values``
    :param dones: 1 where the episode ends with the step, else 0
    :param action_values: Q(x_t, a_t)
    :param values: V(x_t)
    :param ratios: rho_t = pi(a_t | x_t) / mu(a_t | x_t)
    :param last_values: V(x_T), shape ``(n_segments,)``
    :param gamma: discount
    :return: Q^ret_t
    """
    targets = th.empty_like(rewards)
    next_value = last_values
    for t in reversed(range(len(rewards))):
        targets[t] = rewards[t] + gamma * (1 - dones[t]) * next_value
        next_value = ratios[t].clamp(max=1) * (targets[t] - action_values[t]) + values[t]
    return targets


def policy_gradient(
    probabilities: th.Tensor,
    behaviour: th.Tensor,
    actions: th.Tensor,
    q_values: th.Tensor,
    targets: th.Tensor,
    truncation: float,
) -> th.Tensor:
    """
    Equation (10), the gradient of ACER with respect to the statistics of the policy, here the probabilities of the actions.
    It is that of min(c, rho(a_t)) log pi(a_t) (Q^ret - V), whose weight is truncated, plus, to correct the bias of truncation,
    that of the mean over pi of max(0, 1 - c / rho(a)) log pi(a) (Q(a) - V). All but log pi is constant in both.

    :param probabilities: pi(a | x), shape ``(batch, n_actions)``
    :param behaviour: mu(a | x), that of the policy that acted, in the same shape
    :param actions: a_t, shape ``(batch,)``
    :param q_values: Q(x, a), shape ``(batch, n_actions)``
    :param targets: Q^ret, shape ``(batch,)``
    :param truncation: c
    :return: the gradient, shape ``(batch, n_actions)``
    """
    ratios = probabilities / behaviour
    values = (probabilities * q_values).sum(dim=1, keepdim=True)
    taken = nn.functional.one_hot(actions, probabilities.shape[1])
    of_taken = taken * ratios.clamp(max=truncation) / probabilities * (targets[:, None] - values)
    # The expectation's pi(a) and the 1 / pi(a) of the logarithm cancel
    return of_taken + (1 - truncation / ratios).clamp(min=0) * (q_values - values)


class ACERPolicy(ActorCriticPolicy):
    """SB3's policy with a value for each action: V(x) is the mean of Q(x, a) over the policy."""

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        assert isinstance(self.action_space, spaces.Discrete), f"actions must be Discrete, but are {self.action_space}"
        self.value_net = nn.Linear(self.mlp_extractor.latent_dim_vf, int(self.action_space.n))
        if self.ortho_init:
            self.init_weights(self.value_net, gain=1)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def heads(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """
        Both heads.

        :param obs: observations
        :return: pi(a | x) and Q(x, a), each of shape ``(batch, n_actions)``
        """
        features = self.extract_features(obs)
        pi_features, vf_features = features if isinstance(features, tuple) else (features, features)
        logits = self.action_net(self.mlp_extractor.forward_actor(pi_features))
        return logits.softmax(dim=1), self.value_net(self.mlp_extractor.forward_critic(vf_features))

    def forward(self, obs: th.Tensor, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """As in the base class."""
        probabilities, q_values = self.heads(obs)
        distribution = self.action_dist.proba_distribution(probabilities.log())
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, (probabilities * q_values).sum(dim=1, keepdim=True), distribution.log_prob(actions)

    def evaluate_actions(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """As in the base class."""
        distribution = self.get_distribution(obs)
        return self.predict_values(obs), distribution.log_prob(actions), distribution.entropy()

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """As in the base class."""
        probabilities, q_values = self.heads(obs)
        return (probabilities * q_values).sum(dim=1, keepdim=True)


class ACERCnnPolicy(ACERPolicy, ActorCriticCnnPolicy):
    """With SB3's network for images."""


class Segments(NamedTuple):
    """
    Parts of trajectories, of the same length.

    :param observations: with that after the last step, shape ``(n_steps + 1, n_segments, ...)``
    :param actions: shape ``(n_steps, n_segments)``, as the others
    :param rewards: rewards
    :param dones: 1 where the episode ends with the step, else 0
    :param behaviour: probabilities of all actions when they were chosen, shape ``(n_steps, n_segments, n_actions)``
    """

    observations: th.Tensor
    actions: th.Tensor
    rewards: th.Tensor
    dones: th.Tensor
    behaviour: th.Tensor


class SegmentBuffer(BaseBuffer):
    """
    Replay buffer of whole segments, the oldest of which are overwritten.

    :param buffer_size: number of segments of each environment
    :param n_steps: length of a segment
    :param args: the other arguments of SB3's ``BaseBuffer``
    :param kwargs: likewise
    """

    def __init__(self, buffer_size: int, n_steps: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(buffer_size, *args, **kwargs)
        assert isinstance(self.action_space, spaces.Discrete)
        shape = (self.buffer_size, n_steps, self.n_envs)
        with_last = (self.buffer_size, n_steps + 1, self.n_envs, *self.obs_shape)
        self.arrays: tuple[np.ndarray, ...] = (
            np.zeros(with_last, self.observation_space.dtype),
            np.zeros(shape, np.int64),
            np.zeros(shape, np.float32),
            np.zeros(shape, np.float32),
            np.zeros((*shape, int(self.action_space.n)), np.float32),
        )

    def add(self, segments: Segments) -> None:
        """
        Keep the segments of a rollout.

        :param segments: one of each environment
        """
        for array, new in zip(self.arrays, segments, strict=True):
            array[self.pos] = new.cpu().numpy()
        self.pos = (self.pos + 1) % self.buffer_size
        self.full = self.full or self.pos == 0

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> Segments:  # type: ignore[override]
        envs = np.random.randint(self.n_envs, size=len(batch_inds))
        # Indices that a slice separates come first in the result
        return Segments(*(self.to_torch(array[batch_inds, :, envs].swapaxes(0, 1)) for array in self.arrays))


class ACER(A2C):
    """
    ACER: after each rollout, an update on it and, on average, ``replay_ratio`` updates on segments of earlier ones.

    Where a time limit ends an episode, the value after it is that of the policy that acted, as in SB3's A2C.

    :param policy: the policy to use: MlpPolicy, CnnPolicy, or a class derived from ``ACERPolicy``
    :param env: the environment to learn from, with discrete actions
    :param learning_rate: step size, a float or a schedule
    :param n_steps: length of a rollout and of a segment
    :param ent_coef: weight of the entropy
    :param max_grad_norm: bound on the norm of the gradient
    :param buffer_size: number of steps that are kept, in all environments together
    :param learning_starts: number of steps before the first update on earlier rollouts
    :param replay_ratio: mean of the Poisson distribution of the number of updates on earlier rollouts
    :param truncation: c, where importance weights are truncated
    :param delta: bound on how much an update may raise KL[pi_average, pi], to first order; ``None`` for no trust region
    :param alpha: weight of the past in the average of the policies
    :param kwargs: the other arguments of SB3's ``A2C``; ``vf_coef`` is the weight of half the squared error of Q
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": ACERPolicy, "CnnPolicy": ACERCnnPolicy}
    policy: ACERPolicy
    average_policy: ACERPolicy

    def __init__(
        self,
        policy: str | type[ACERPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 7e-4,
        n_steps: int = 20,
        *,
        ent_coef: float = 0.01,
        max_grad_norm: float = 10.0,
        buffer_size: int = 50_000,
        learning_starts: int = 10_000,
        replay_ratio: float = 4.0,
        truncation: float = 10.0,
        delta: float | None = 1.0,
        alpha: float = 0.99,
        **kwargs: Any,
    ) -> None:
        self.buffer_size = buffer_size
        self.learning_starts = learning_starts
        self.replay_ratio = replay_ratio
        self.truncation = truncation
        self.delta = delta
        self.alpha = alpha
        super().__init__(policy, env, learning_rate, n_steps, ent_coef=ent_coef, max_grad_norm=max_grad_norm, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.average_policy = deepcopy(self.policy)
        n_segments = max(self.buffer_size // (self.n_steps * self.n_envs), 1)
        spaces_ = (self.observation_space, self.action_space)
        self.replay_buffer = SegmentBuffer(n_segments, self.n_steps, *spaces_, device=self.device, n_envs=self.n_envs)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        return [*state_dicts, "average_policy"], tensors

    def train(self) -> None:
        """Update on the last rollout, then on earlier ones."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        rollout = self._rollout()
        self._update(rollout)
        self.replay_buffer.add(rollout)
        if self.num_timesteps >= self.learning_starts:
            for _ in range(np.random.poisson(self.replay_ratio)):
                self._update(self.replay_buffer.sample(self.n_envs))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _rollout(self) -> Segments:
        """The last rollout, whose probabilities are those of the policy as it is."""
        buffer = self.rollout_buffer
        last_obs, last_starts = np.asarray(self._last_obs), np.asarray(self._last_episode_starts)
        arrays = (
            np.concatenate([buffer.observations, last_obs.reshape(1, *buffer.observations.shape[1:])]),
            # Floats in older versions of SB3
            buffer.actions[..., 0].astype(np.int64),
            buffer.rewards,
            # An episode starts where the one before ended
            np.concatenate([buffer.episode_starts[1:], last_starts[None]]).astype(np.float32),
        )
        observations, actions, rewards, dones = map(buffer.to_torch, arrays)
        with th.no_grad():
            behaviour = self.policy.heads(observations[:-1].flatten(0, 1))[0]
        return Segments(observations, actions, rewards, dones, behaviour.unflatten(0, actions.shape))

    def _update(self, segments: Segments) -> None:
        """A gradient step."""
        observations = segments.observations.flatten(0, 1)
        shape = segments.observations.shape[:2]
        # The last observations of all segments come after the others
        n = segments.actions.numel()
        probabilities, q_values = self.policy.heads(observations)
        actions, behaviour = segments.actions.flatten(), segments.behaviour.flatten(0, 1).clamp(min=SMALLEST)
        action_values = q_values[:n].gather(1, actions[:, None])[:, 0]
        with th.no_grad():
            pi = probabilities.clamp(min=SMALLEST)
            values = (pi * q_values).sum(dim=1).unflatten(0, shape)
            ratios = (pi[:n] / behaviour).gather(1, actions[:, None]).view_as(segments.rewards)
            targets = retrace(
                segments.rewards,
                segments.dones,
                action_values.view_as(segments.rewards),
                values[:-1],
                ratios,
                values[-1],
                self.gamma,
            ).flatten()
            pi = pi[:n]
            gradient = policy_gradient(pi, behaviour, actions, q_values[:n], targets, self.truncation)
            # That of the entropy
            gradient -= self.ent_coef * (1 + pi.log())
            average = self.average_policy.heads(observations[:n])[0]
            if self.delta is not None:
                # That of KL[pi_average, pi] is -pi_average / pi
                gradient = project(gradient, -average / pi, self.delta)
        # The gradient of this by the probabilities is the negative of the one above
        policy_loss = -(gradient * probabilities[:n]).sum(dim=1).mean()
        value_loss = (targets - action_values).square().mean() / 2

        self.policy.optimizer.zero_grad()
        (policy_loss + self.vf_coef * value_loss).backward()
        nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        polyak_update(self.policy.parameters(), self.average_policy.parameters(), tau=1 - self.alpha)
        self._n_updates += 1
        for name, value in {
            "value_loss": value_loss,
            "entropy_loss": (pi * pi.log()).sum(dim=1).mean(),
            "kl_to_average": (average * (average.clamp(min=SMALLEST) / pi).log()).sum(dim=1).mean(),
            "ratio": ratios.mean(),
        }.items():
            self.logger.record_mean(f"train/{name}", value.item())
