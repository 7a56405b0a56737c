"""
What policies say of observations, in rollouts and in updates. For the policy that most people use, ``MlpPolicy`` on vectors
with a Gaussian or categorical distribution, there are fast lanes, without module calls and distribution objects.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from sb3_ppo_variants import checks
from sb3_ppo_variants.evaluation import evaluation_mode
from sb3_ppo_variants.kl import ClosedForm, closed_form, kl_categoricals, kl_normal
from sb3_ppo_variants.stand_in import is_of_library, is_own, is_standard_mlp, leaves_distribution, networks

LOG_SQRT_2PI = math.log(math.sqrt(2 * math.pi))
# Samples, and bytes of observations, per forward pass when a policy is evaluated on a whole rollout: bounds the memory that it
# takes, and images that fit into a cache are faster
CHUNK_SIZE = 1024
CHUNK_BYTES = 2**22
# Samples on which is checked whether a custom policy acts by the distribution that it returns
N_CHECKED = 64


class Evaluation(NamedTuple):
    """What a policy says of observations and actions. All tensors have shape ``(batch,)``."""

    values: th.Tensor
    log_prob: th.Tensor
    entropy: th.Tensor | None
    # What the KL of the action distribution is made of
    closed_form: Callable[[], ClosedForm]


def evaluate_policy(policy: ActorCriticPolicy, observations: PyTorchObs, actions: th.Tensor) -> Evaluation:
    """
    ``policy.evaluate_actions`` of any policy, and what the KL of its distribution is made of.

    :param policy: the policy
    :param observations: shape ``(batch, ...)``, or a dict of such
    :param actions: shape ``(batch, action_dim)``, or ``(batch,)`` if discrete
    :return: values, log probabilities, entropy and the closed form
    """
    values, log_prob, entropy = policy.evaluate_actions(observations, actions)

    def closed_form_of_policy() -> ClosedForm:
        if leaves_distribution(policy, "evaluate_actions"):
            return closed_form(policy.action_dist)
        return closed_form(policy.get_distribution(observations))

    return Evaluation(values.flatten(), log_prob, entropy, closed_form_of_policy)


def closed_form_of_samples(policy: ActorCriticPolicy, observations: PyTorchObs, actions: th.Tensor) -> ClosedForm:
    """
    What the KL of pi(.|s) is made of, for many observations.

    :param policy: the policy, without gradients
    :param observations: shape ``(n_samples, ...)``, or a dict of such
    :param actions: shape ``(n_samples, action_dim)``, or ``(n_samples,)`` if discrete
    :return: the closed form
    :raises NotImplementedError: if none is known
    """
    forms = []
    tensors = pytree.tree_leaves(observations)
    n_samples = len(tensors[0])
    n_bytes = sum(tensor.nbytes for tensor in tensors)
    chunk_size = min(max(CHUNK_BYTES * n_samples // n_bytes, 1), CHUNK_SIZE)
    for start in range(0, n_samples, chunk_size):
        part = slice(start, start + chunk_size)
        # Without the values, where that gives the same
        if is_own(policy, "get_distribution", "extract_features") or not leaves_distribution(policy, "evaluate_actions"):
            distribution = policy.get_distribution(_copied(observations, part))
        else:
            policy.evaluate_actions(_copied(observations, part), actions[part].clone())
            distribution = policy.action_dist
        forms.append(closed_form(distribution))
    parameters = zip(*(form.parameters for form in forms), strict=True)
    return ClosedForm(forms[-1].divergence, tuple(map(th.cat, parameters)))


def acts_by_known_distribution(policy: ActorCriticPolicy, observations: PyTorchObs, actions: th.Tensor) -> bool:
    """
    Whether the distribution is known from which ``evaluate_actions`` has its log probabilities. If a custom policy has its
    own, that may not be what ``get_distribution`` returns: SB3's networks may still be there, unused, or may be missing.

    :param policy: the policy, without gradients
    :param observations: shape ``(n_samples, ...)``, or a dict of such
    :param actions: shape ``(n_samples, action_dim)``, or ``(n_samples,)`` if discrete
    :return: whether it is
    """
    if leaves_distribution(policy, "evaluate_actions"):
        return True
    some = slice(N_CHECKED)
    # Also if the first changes them in place
    chosen = actions[some].clone()
    # Whatever a custom policy may raise
    with suppress(Exception):
        # Each with the same random numbers, which it may draw; the first with gradients, which may be part of what it computes
        with evaluation_mode(policy), th.enable_grad():
            log_prob = policy.evaluate_actions(_copied(observations, some), chosen)[1].detach()
        with evaluation_mode(policy):
            found = policy.get_distribution(_copied(observations, some)).log_prob(chosen)
        return th.allclose(found.to(log_prob.dtype), log_prob, rtol=1e-3, atol=1e-3)
    return False


def _copied(observations: PyTorchObs, part: slice) -> PyTorchObs:
    # A policy may change its input in place
    copied: PyTorchObs = pytree.tree_map(lambda tensor: tensor[part].clone(), observations)
    return copied


@contextmanager
def unvalidated_distributions() -> Iterator[None]:
    """Let torch's distributions take NaN, which is looked for once an update instead."""
    validated = th.distributions.Distribution._validate_args
    th.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        th.distributions.Distribution.set_default_validate_args(validated)


class StraightPolicy:
    """
    The operations of ``ActorCriticPolicy.evaluate_actions`` in a straight line: bit for bit the same numbers and gradients.

    :param policy: a policy that ``is_standard_mlp``, whose parameters are read at each call
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        # Dictionaries of the parameters of linear layers, and functions
        self.pi, self.vf = (
            [layer._parameters if type(layer) is nn.Linear else layer for layer in layers] for layers in networks(policy)
        )
        self.is_gaussian = isinstance(policy.action_dist, DiagGaussianDistribution)
        self.own_parameters: dict[str, Any] = policy._parameters

    def _forward(self, observations: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        observations = observations.float()
        return _apply(self.pi, observations), _apply(self.vf, observations)

    def evaluate(self, observations: PyTorchObs, actions: th.Tensor) -> Evaluation:
        """
        As ``policy.evaluate_actions``, with the values flattened.

        :param observations: shape ``(batch, observation_dim)``
        :param actions: shape ``(batch, action_dim)``, or ``(batch,)`` if discrete
        :return: values, log probabilities, entropy and the closed form
        """
        assert isinstance(observations, th.Tensor)
        outputs, values = self._forward(observations)
        if self.is_gaussian:
            std = th.ones_like(outputs) * self.own_parameters["log_std"].exp()
            log_prob = (-((actions - outputs) ** 2) / (2 * std**2) - std.log() - LOG_SQRT_2PI).sum(dim=1)
            entropy = (0.5 + 0.5 * math.log(2 * math.pi) + th.log(std)).sum(dim=1)
            return Evaluation(values.flatten(), log_prob, entropy, lambda: ClosedForm(kl_normal, (outputs, std)))
        logits = outputs - outputs.logsumexp(dim=-1, keepdim=True)
        log_prob = logits.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        # The clamp keeps logits of -inf from becoming NaN
        p_log_p = th.clamp(logits, min=th.finfo(logits.dtype).min) * F.softmax(logits, dim=-1)
        return Evaluation(values.flatten(), log_prob, -p_log_p.sum(-1), lambda: ClosedForm(kl_categoricals, (logits,)))


def _apply(layers: list[Any], latent: th.Tensor) -> th.Tensor:
    for layer in layers:
        latent = F.linear(latent, layer["weight"], layer["bias"]) if isinstance(layer, dict) else layer(latent)
    return latent


class Action(NamedTuple):
    """What a policy does in a step of a rollout, and the names that SB3 gives to it."""

    # Of shape (n_envs, ...), or a dict of such
    obs_tensor: PyTorchObs
    actions: np.ndarray
    # (n_envs, 1)
    values: th.Tensor
    # (n_envs,)
    log_probs: th.Tensor


class ModulePolicy:
    """
    ``ActorCriticPolicy.forward`` of any policy, for one rollout.

    :param policy: the policy
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy
        self.keeps_parameters = leaves_distribution(policy, "forward") and leaves_distribution(policy, "evaluate_actions")
        self.steps: list[tuple[th.Tensor, ...]] = []

    def __call__(self, observations: np.ndarray | dict[str, np.ndarray]) -> Action:
        """
        The next step of the rollout.

        :param observations: shape ``(n_envs, ...)``, or a dict of such
        :return: what ``ActorCriticPolicy.forward`` makes of them
        :raises NonFiniteEnvironmentError: if they are not finite, unless a custom policy makes finite numbers of them
        """
        obs_tensor = obs_as_tensor(observations, self.policy.device)
        with unvalidated_distributions():
            actions, values, log_probs = self._checked(self.policy, observations, obs_tensor)
            if self.keeps_parameters:
                # Custom distributions may be of another kind
                with suppress(NotImplementedError):
                    self.steps.append(closed_form(self.policy.action_dist).parameters)
        return Action(obs_tensor, actions.cpu().numpy(), values, log_probs)

    def predict_values(
        self, observations: np.ndarray | dict[str, np.ndarray], obs_tensor: PyTorchObs | None = None
    ) -> th.Tensor:
        """
        The values of observations after which there is no step.

        :param observations: as the environment returned them
        :param obs_tensor: as the policy takes them, of shape ``(n, ...)``, or a dict of such, if they are not of that shape
        :return: their values, shape ``(n, 1)``
        :raises NonFiniteEnvironmentError: as for a step
        """
        if obs_tensor is None:
            obs_tensor = obs_as_tensor(observations, self.policy.device)
        return self._checked(self.policy.predict_values, observations, obs_tensor)

    @th.no_grad()
    def _checked(
        self, method: Callable[..., Any], observations: np.ndarray | dict[str, np.ndarray], obs_tensor: PyTorchObs
    ) -> Any:
        try:
            checks.check_observation(observations)
        except checks.NonFiniteEnvironmentError:
            # A custom policy may know what to do with what is missing
            if all(map(is_of_library, self.policy.modules())) or not self._copes(method, obs_tensor):
                raise
        return method(obs_tensor)

    def _copes(self, method: Callable[..., Any], obs_tensor: PyTorchObs) -> bool:
        """Whether a method makes finite numbers of what is not finite."""
        # Whatever a policy may raise that has not been made for that
        with suppress(Exception), evaluation_mode(self.policy):
            return all(th.isfinite(result).all() for result in pytree.tree_leaves(method(obs_tensor)))
        return False

    def parameters(self) -> tuple[th.Tensor, ...]:
        """
        Parameters of the distributions so far, as in ``ClosedForm``, each of shape ``(n_steps, n_envs, ...)``; none if they
        are not known.
        """
        return stack(self.steps)


def stack(steps: list[tuple[th.Tensor, ...]]) -> tuple[th.Tensor, ...]:
    """
    Stack the parameters of several steps.

    :param steps: parameters at each step
    :return: the same in one tensor each
    """
    return tuple(th.stack(parameters) for parameters in zip(*steps, strict=True))


class RolloutPolicy(StraightPolicy):
    """
    The operations of ``ActorCriticPolicy.forward`` in a straight line, for one rollout: bit for bit the same numbers and
    random draws. Parameters are read at each step, as a callback may change them; what depends on ``log_std`` alone is
    computed when it changes.

    :param policy: a policy that ``is_standard_mlp``
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__(policy)
        self.log_std = th.empty(0)
        self.steps: list[tuple[th.Tensor, ...]] = []

    @th.no_grad()
    def __call__(self, observations: np.ndarray) -> Action:
        """
        The next step of the rollout.

        :param observations: shape ``(n_envs, observation_dim)``
        :return: as by ``ModulePolicy``
        :raises ValueError: if the observations are not finite
        """
        _check_vectors(observations)
        obs_tensor = th.from_numpy(observations)
        outputs, values = self._forward(obs_tensor)
        if self.is_gaussian:
            log_std = self.own_parameters["log_std"]
            if not th.equal(self.log_std, log_std):
                self.log_std = log_std.clone()
                self.std = th.ones_like(outputs) * self.log_std.exp()
                self.double_variance = 2 * self.std**2
                self.log_stds = self.std.log()
            self.steps.append((outputs, self.std))
            actions = outputs + th.empty_like(outputs).normal_().mul_(self.std)
            squares = (actions - outputs).square_().neg_()
            log_probs = squares.div_(self.double_variance).sub_(self.log_stds).sub_(LOG_SQRT_2PI).sum(dim=1)
            return Action(obs_tensor, actions.numpy(), values, log_probs)
        logits = outputs - outputs.logsumexp(dim=-1, keepdim=True)
        self.steps.append((logits,))
        actions = th.multinomial(F.softmax(logits, dim=-1), 1, True)
        return Action(obs_tensor, actions.squeeze(1).numpy(), values, logits.gather(-1, actions).squeeze(-1))

    def parameters(self) -> tuple[th.Tensor, ...]:
        """Parameters of the distributions so far, as ``ModulePolicy.parameters``."""
        return stack(self.steps)


class StackedPolicy:
    """
    A policy for one rollout, in NumPy: SB3's up to rounding, with other random draws of the same distribution. Its parameters
    are those at the start of the rollout (a callback that changes them meanwhile takes effect in the next one), so the two
    networks are stacked into one with block-diagonal weights, and the noise of all steps is drawn at once, from torch's
    generator. Values and log probabilities are written to the buffer, and the tensors returned are views of it, as to make
    tensors takes time.

    :param policy: a policy that ``is_standard_mlp``
    :param buffer: an empty buffer, for the rollout
    """

    @staticmethod
    def supports(policy: ActorCriticPolicy) -> bool:
        """
        Whether the layers of a policy can be stacked.

        :param policy: any policy
        :return: whether they can
        """
        if not is_standard_mlp(policy):
            return False
        pi, vf = networks(policy)
        return [type(layer) for layer in pi] == [type(layer) for layer in vf] and all(
            type(layer) in (nn.Linear, nn.Tanh, nn.ReLU) for layer in pi
        )

    def __init__(self, policy: ActorCriticPolicy, buffer: RolloutBuffer) -> None:
        n_steps, n_envs = buffer.values.shape
        pi, vf = networks(policy)
        # Weight (transposed) and bias of a linear layer, or the function of an activation
        self.layers: list[tuple[np.ndarray, np.ndarray] | Callable[..., np.ndarray]] = []
        first = True
        for layer_pi, layer_vf in zip(pi, vf, strict=True):
            if isinstance(layer_pi, nn.Linear):
                weights = [layer.weight.detach() for layer in (layer_pi, layer_vf)]
                # Both networks see the observation
                weight = th.cat(weights) if first else th.block_diag(*weights)
                first = False
                bias = th.cat([layer_pi.bias, layer_vf.bias]).detach()
                # A row for each environment: sums of equal shapes are faster
                self.layers.append((weight.t().contiguous().numpy(), bias.repeat(n_envs, 1).numpy()))
            else:
                self.layers.append(np.tanh if isinstance(layer_pi, nn.Tanh) else _relu)
        self.n_outputs = pi[-1].out_features
        self.outputs = np.empty((n_steps, n_envs, self.n_outputs), dtype=np.float32)
        self.step = 0
        self.values, self.log_probs = buffer.values[..., None], buffer.log_probs
        self.value_tensors = th.from_numpy(self.values).unbind()
        self.log_prob_tensors = th.from_numpy(self.log_probs).unbind()
        self.is_gaussian = isinstance(policy.action_dist, DiagGaussianDistribution)
        if self.is_gaussian:
            log_std = policy.log_std.detach()
            self.std = log_std.exp()
            noise = th.randn(n_steps, n_envs, self.n_outputs)
            self.noise = (noise * self.std).numpy()
            # log pi(a|s) of a = mean + std * noise does not depend on the mean
            self.log_probs[:] = (-0.5 * noise**2 - log_std - LOG_SQRT_2PI).sum(dim=-1).numpy()
        else:
            self.uniform = th.rand(n_steps, n_envs, 1).numpy()
            # Probabilities may become 0, also where NumPy has been told to raise an error then
            self.exp = np.exp if np.geterr()["under"] == "ignore" else np.errstate(under="ignore")(np.exp)

    def __call__(self, observations: np.ndarray) -> Action:
        """
        The next step of the rollout.

        :param observations: shape ``(n_envs, observation_dim)``
        :return: as by ``ModulePolicy``
        :raises ValueError: if the observations are not finite
        """
        _check_vectors(observations)
        latent = observations.astype(np.float32, copy=False)
        for layer in self.layers:
            if isinstance(layer, tuple):
                latent = np.dot(latent, layer[0])
                latent += layer[1]
            else:
                layer(latent, out=latent)
        step, self.step = self.step, self.step + 1
        outputs = self.outputs[step]
        outputs[:] = latent[:, : self.n_outputs]
        self.values[step] = latent[:, self.n_outputs :]
        obs_tensor, values, log_probs = th.from_numpy(observations), self.value_tensors[step], self.log_prob_tensors[step]
        if self.is_gaussian:
            return Action(obs_tensor, outputs + self.noise[step], values, log_probs)
        # Inverse of the cumulative distribution
        logits = outputs - outputs.max(axis=1, keepdims=True)
        probs = self.exp(logits)
        cumulative = probs.cumsum(axis=1)
        actions = (cumulative[:, :-1] <= self.uniform[step] * cumulative[:, -1:]).sum(axis=1)
        self.log_probs[step] = logits[np.arange(len(actions)), actions] - np.log(cumulative[:, -1])
        return Action(obs_tensor, actions, values, log_probs)

    def parameters(self) -> tuple[th.Tensor, ...]:
        """Parameters of the distributions of all steps, as ``ModulePolicy.parameters``."""
        outputs = th.from_numpy(self.outputs)
        return (outputs, self.std.expand_as(outputs).contiguous()) if self.is_gaussian else (outputs.log_softmax(dim=-1),)


def _check_vectors(observations: np.ndarray) -> None:
    # The sum of the squares is quick to compute, and not finite if one of them is not
    if not math.isfinite(np.vdot(observations, observations)):
        checks.check_observation(observations)


def _relu(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0, out=out)
