"""Rollouts of policies that see a vector in NumPy: up to rounding the numbers of SB3, with other random draws."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_ppo_variants import checks
from sb3_ppo_variants.masks import heads_of
from sb3_ppo_variants.policies import (
    INVALID,
    LOG_SQRT_2PI,
    NOTHING,
    Action,
    FeedForward,
    Given,
    Observations,
    as_tensors,
    is_standard_mlp,
    networks,
)

# Activations, of each number by itself
ACTIVATIONS: dict[type[nn.Module], Callable[..., Any]] = {nn.Tanh: np.tanh, nn.ReLU: partial(np.maximum, 0)}
OF_TORCH = (nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.LeakyReLU, nn.ReLU6, nn.Hardtanh, nn.Softplus, nn.Sigmoid)


class NumpyPolicy(FeedForward):
    """
    A policy for one rollout, with the parameters that it has at the start. As they do not change, the two networks are stacked
    into one with block-diagonal weights, and the noise of all steps is drawn at once, from torch's generator. Values and log
    probabilities are written to the buffer, and the tensors returned are views of it, as making tensors takes time.
    """

    fills_buffer = True
    # Whether both networks see the same
    shares_input = True

    @staticmethod
    def supports(policy: ActorCriticPolicy) -> bool:
        """Whether a policy that sees a vector has no memory, and layers that can be stacked."""
        return has_stackable_layers(policy) and not isinstance(policy, RecurrentActorCriticPolicy)

    def __init__(self, policy: ActorCriticPolicy, buffer: RolloutBuffer) -> None:
        super().__init__(policy)
        n_steps, n_envs = buffer.values.shape
        self.encode = encoder(policy.observation_space)
        pi, vf = networks(policy)
        # Weight (transposed) and bias of a linear layer, or the function of an activation
        self.layers: list[tuple[np.ndarray, np.ndarray] | Callable[..., Any]] = []
        for layer_pi, layer_vf in zip(pi, vf, strict=True):
            if isinstance(layer_pi, nn.Linear):
                weights = [layer_pi.weight.detach(), layer_vf.weight.detach()]
                # The first layers of both networks see the observation, if there is no memory
                weight = th.block_diag(*weights) if self.layers or not self.shares_input else th.cat(weights)
                bias = th.cat([layer_pi.bias, layer_vf.bias]).detach()
                # A row for each environment: sums of equal shapes are faster
                self.layers.append((weight.t().contiguous().numpy(), bias.repeat(n_envs, 1).numpy()))
            else:
                self.layers.append(ACTIVATIONS.get(type(layer_pi)) or partial(_by_torch, layer_pi))
        self.n_outputs = pi[-1].out_features
        self.step = 0
        self.values, self.log_probs = buffer.values[..., None], buffer.log_probs
        self.value_tensors = th.from_numpy(self.values).unbind()
        self.log_prob_tensors = th.from_numpy(self.log_probs).unbind()
        self.is_gaussian = isinstance(policy.action_dist, DiagGaussianDistribution)
        self.action_shape = (n_envs, *policy.action_space.shape)  # type: ignore[misc]
        if self.is_gaussian:
            log_std, noise = policy.log_std.detach(), th.randn(n_steps, n_envs, self.n_outputs)
            self.noise = (noise * log_std.exp()).numpy()
            if not checks.all_finite(self.noise):
                raise checks.NonFinitePolicyError.of(policy)
            # log pi(a|s) of a = mean + std * noise does not depend on the mean
            self.log_probs[:] = (-0.5 * noise**2 - log_std - LOG_SQRT_2PI).sum(dim=-1).numpy()
        else:
            self.heads = heads_of(policy.action_space)
            self.uniform = th.rand(n_steps, n_envs * len(self.heads), 1).numpy()
            # Rows of equal length, with places that are never taken: those of one more column
            starts, width = np.cumsum((0, *self.heads[:-1])), max(self.heads)
            is_place = np.arange(width) < np.array(self.heads)[:, None]
            self.places = None if is_place.all() else np.where(is_place, starts[:, None] + np.arange(width), self.n_outputs)
            self.padded = np.full((n_envs, self.n_outputs + 1), np.float32(INVALID))
            self.rows = np.arange(n_envs * len(self.heads))
            # Probabilities may become 0, also where NumPy has been told to raise an error then
            self.exp = np.exp if np.geterr()["under"] == "ignore" else np.errstate(under="ignore")(np.exp)

    def _inputs(self, vector: np.ndarray, given: Given) -> np.ndarray:
        """What the networks see."""
        return vector

    def act(self, observations: Observations, given: Given = NOTHING) -> Action:
        """The next step of the rollout, as ``FeedForward.act``."""
        vector = self.encode(observations)
        if not checks.all_finite(vector):
            checks.check_observation(observations)
        latent = self._inputs(vector, given)
        for layer in self.layers:
            if isinstance(layer, tuple):
                latent = np.dot(latent, layer[0])
                latent += layer[1]
            else:
                layer(latent, out=latent)
        if not checks.all_finite(latent):
            raise checks.NonFinitePolicyError.of(self.policy)
        step, self.step = self.step, self.step + 1
        outputs = latent[:, : self.n_outputs]
        self.values[step] = latent[:, self.n_outputs :]
        obs_tensor, values, log_probs = as_tensors(observations), self.value_tensors[step], self.log_prob_tensors[step]
        if self.is_gaussian:
            return Action(obs_tensor, (outputs + self.noise[step]).reshape(self.action_shape), values, log_probs)
        if "action_masks" in given:
            outputs = np.where(given["action_masks"], outputs, np.float32(INVALID))
        if self.places is not None:
            self.padded[:, :-1] = outputs
            outputs = self.padded[:, self.places]
        outputs = outputs.reshape(len(self.rows), -1)
        logits = outputs - outputs.max(axis=1, keepdims=True)
        cumulative = self.exp(logits).cumsum(axis=1)
        actions = (cumulative[:, :-1] <= self.uniform[step] * cumulative[:, -1:]).sum(axis=1)
        found = logits[self.rows, actions] - np.log(cumulative[:, -1])
        self.log_probs[step] = found if len(self.heads) == 1 else found.reshape(len(vector), -1).sum(axis=1)
        return Action(obs_tensor, actions.reshape(self.action_shape), values, log_probs)


def encoder(space: spaces.Space) -> Callable[[Any], np.ndarray]:
    """What makes of observations the vectors that ``policies.vector`` makes of them, of shape ``(n_envs, n)``."""
    if isinstance(space, spaces.Dict):
        parts = {name: encoder(part) for name, part in space.spaces.items()}
        return lambda observations: np.concatenate([encode(observations[name]) for name, encode in parts.items()], axis=1)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return partial(_one_hot, space, np.atleast_1d(space.n if isinstance(space, spaces.Discrete) else space.nvec))
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return partial(np.asarray, dtype=np.float32)
    return lambda observations: np.asarray(observations, dtype=np.float32).reshape(len(observations), -1)


def _one_hot(space: spaces.Space, sizes: np.ndarray, observations: Any) -> np.ndarray:
    """A one among zeros for each part, of ``sizes``."""
    index = np.asarray(observations).astype(np.int64).reshape(-1, len(sizes))
    is_outside = (index < 0) | (index >= sizes)
    if is_outside.any():
        raise ValueError(f"The environment returned an observation of {index[is_outside][0]}, which is not in {space}")
    found = np.zeros((len(index), sizes.sum()), dtype=np.float32)
    np.put_along_axis(found, index + sizes.cumsum() - sizes, 1, axis=1)
    return found


def _by_torch(layer: nn.Module, x: np.ndarray, out: np.ndarray) -> None:
    out[:] = layer(th.from_numpy(x)).numpy()


def has_stackable_layers(policy: ActorCriticPolicy) -> bool:
    """Whether a policy sees a vector, and its networks have the same layers, but for sizes, of those that there are here."""
    if not is_standard_mlp(policy):
        return False
    # With the parameters of activations
    pi, vf = ([type(layer) if type(layer) is nn.Linear else repr(layer) for layer in net] for net in networks(policy))
    return pi == vf and all(type(layer) in (nn.Linear, *ACTIVATIONS, *OF_TORCH) for layer in networks(policy)[0])
