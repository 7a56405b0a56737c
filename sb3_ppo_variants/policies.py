"""What PPO asks of a policy: to act, to value, to evaluate. Here of SB3's; kinds.py has those that are given more."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import MaskableDistribution
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, MlpExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn
from torch.utils import _pytree as pytree

from sb3_ppo_variants import checks, masks, recurrent_policies
from sb3_ppo_variants.kl import ClosedForm, closed_form
from sb3_ppo_variants.loss import Batch, Evaluation
from sb3_ppo_variants.recurrent_policies import MaskableMlpLstmPolicy

# What an environment returns, of shape (n_envs, ...)
Observations = np.ndarray | dict[str, np.ndarray]
# What a policy is given besides, by the name that its methods have for it
Given = Mapping[str, Any]
NOTHING: Given = MappingProxyType({})

LOG_SQRT_2PI = math.log(math.sqrt(2 * math.pi))
# Samples, and bytes of observations, per forward pass when a policy is evaluated on a whole rollout: bounds the memory that it
# takes, and images that fit into a cache are faster
CHUNK_SIZE = 1024
CHUNK_BYTES = 2**22
# contrib's logit of an invalid action, which thus has probability 0
INVALID = -1e8
DISTRIBUTIONS = (DiagGaussianDistribution, CategoricalDistribution, MultiCategoricalDistribution)
# Samples on which is checked whether a custom policy acts as it says
N_CHECKED = 64


class Action(NamedTuple):
    """What a policy does in a step of a rollout: of shape ``(n_envs, ...)``, the values ``(n_envs, 1)``."""

    obs_tensor: PyTorchObs
    actions: np.ndarray
    values: th.Tensor
    log_probs: th.Tensor
    # The next states of a policy with memory
    lstm_states: Any = None


def as_tensors(observations: Observations) -> PyTorchObs:
    """``obs_as_tensor`` on the CPU, in less time."""
    return (
        th.from_numpy(observations) if isinstance(observations, np.ndarray) else obs_as_tensor(observations, th.device("cpu"))
    )


class FeedForward:
    """SB3's ``ActorCriticPolicy``, which is given the observation alone."""

    # What the policy takes besides observations, in samples of a rollout buffer
    takes: tuple[str, ...] = ()
    # Steps of the sequences that a policy with memory learns from; none: as contrib cuts them
    sequence_length: int | None = None
    # Whether `act` writes values and log probabilities into the rollout buffer
    fills_buffer = False

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy
        self.is_custom = not is_of_libraries(policy)

    def minibatches(self, n_steps: int, n_envs: int, batch_size: int) -> Sequence[th.Tensor]:
        """Which samples are in the minibatches of an epoch, drawn from NumPy's global generator as SB3 does."""
        return th.as_tensor(np.random.permutation(n_steps * n_envs), device=self.policy.device).split(batch_size)

    def select(self, data: Batch, index: th.Tensor, n_steps: int) -> Batch:
        """A minibatch of a rollout of ``n_steps`` per environment."""
        return data.select(index)

    def whole(self, data: Batch, n_steps: int) -> Batch:
        """All of a rollout as one batch."""
        return data

    @th.no_grad()
    def act(self, observations: Observations, given: Given = NOTHING) -> Action:
        """The next step of a rollout: what ``policy.forward`` makes of observations of shape ``(n_envs, ...)``."""
        obs_tensor = obs_as_tensor(observations, self.policy.device)
        with self._blamed(observations):
            actions, values, log_probs, *states = self.policy(obs_tensor, **given)
            found = actions.cpu().numpy()
            if not (math.isfinite(values.sum()) and checks.all_finite(found)):
                raise checks.NonFinitePolicyError.of(self.policy)
        return Action(obs_tensor, found, values, log_probs, *states)

    @th.no_grad()
    def value(self, observations: Observations, memory: Given = NOTHING, obs_tensor: PyTorchObs | None = None) -> th.Tensor:
        """The values of observations after which there is no step; ``memory`` is for policies that have one."""
        obs_tensor = obs_as_tensor(observations, self.policy.device) if obs_tensor is None else obs_tensor
        with self._blamed(observations):
            values = self.policy.predict_values(obs_tensor, **memory)
            if not math.isfinite(values.sum()):
                raise checks.NonFinitePolicyError.of(self.policy)
        return values

    @contextmanager
    def _blamed(self, observations: Observations) -> Iterator[None]:
        """Blame environment or policy for NaN and infinity. A custom policy may make finite numbers of an environment's."""
        if not self.is_custom:
            checks.check_observation(observations)
        try:
            yield
        except Exception as error:
            checks.check_observation(observations)
            # As torch's distributions say it
            if "to satisfy the constraint" in str(error):
                raise checks.NonFinitePolicyError.of(self.policy) from error
            raise

    def evaluate(self, batch: Batch) -> Evaluation:
        """``policy.evaluate_actions``, and what the KL of its distributions is made of."""
        values, log_prob, entropy = self.policy.evaluate_actions(batch.observations, batch.actions, **batch.given)
        form = partial(self._closed_form, batch.observations, batch.given)
        return Evaluation(values.flatten(), log_prob, entropy, form)

    def _closed_form(self, observations: PyTorchObs, given: Given) -> ClosedForm:
        # The evaluate_actions of SB3 and contrib leaves its distributions there
        has_left_it = is_own(self.policy, "evaluate_actions", "_get_action_dist_from_latent", "get_distribution")
        return closed_form(self.policy.action_dist if has_left_it else self._distribution(observations, given))

    def _distribution(self, observations: PyTorchObs, given: Given) -> Any:
        """pi(.|s), one of SB3's distributions."""
        return self.policy.get_distribution(observations, **given)

    def distributions(self, observations: PyTorchObs, given: Given = NOTHING) -> ClosedForm | None:
        """What the KL of pi(.|s) is made of, for many observations, without gradients and in evaluation mode."""
        chunks = self._chunks(observations, given)
        try:
            forms = self._closed_forms(chunks)
        except NotImplementedError:
            return None
        except Exception as error:
            if not self.is_custom:
                raise
            # Not an error, as SB3's PPO trains such a policy without ever calling get_distribution
            what = f"{type(self.policy).__name__}.get_distribution raises {type(error).__name__}: {error}"
            warnings.warn(f"KL[pi_old, pi] is not known, as {what}", stacklevel=6)
            return None
        parameters = zip(*(form.parameters for form in forms), strict=True)
        return ClosedForm(forms[0].divergence, tuple(map(th.cat, parameters)))

    def _chunks(self, observations: PyTorchObs, given: Given) -> list[tuple[PyTorchObs, Given]]:
        tensors = pytree.tree_leaves(observations)
        n_samples, n_bytes = len(tensors[0]), sum(tensor.nbytes for tensor in tensors)
        chunk_size = min(max(CHUNK_BYTES * n_samples // n_bytes, 1), CHUNK_SIZE)
        starts = range(0, n_samples, chunk_size)
        return [pytree.tree_map(lambda t, i=i: t[i : i + chunk_size], (observations, dict(given))) for i in starts]

    def _closed_forms(self, chunks: list[tuple[PyTorchObs, Given]]) -> list[ClosedForm]:
        with evaluation_mode(self.policy):
            # Copies, as a policy may change its input in place
            return [closed_form(self._distribution(pytree.tree_map(th.clone, obs), given)) for obs, given in chunks]

    def acts_otherwise(self, batch: Batch) -> bool:
        """Whether a custom policy has acted by another distribution than its ``get_distribution``, in some of the samples."""
        if is_own(self.policy, "forward", "evaluate_actions", "get_distribution", "_get_action_dist_from_latent"):
            return False
        batch = self._checked(batch)
        with evaluation_mode(self.policy):
            observations = pytree.tree_map(th.clone, batch.observations)
            log_prob = self._distribution(observations, batch.given).log_prob(batch.actions)
        return not th.allclose(log_prob.to(batch.old_log_prob.dtype), batch.old_log_prob, rtol=1e-2, atol=1e-2)

    def _checked(self, batch: Batch) -> Batch:
        return batch.select(th.arange(min(N_CHECKED, len(batch.actions)), device=batch.actions.device))


class PolicyFunction(nn.Module):
    """A function that calls a policy as the forward of a module, which is what ``functional_call`` calls."""

    def __init__(self, policy: ActorCriticPolicy, function: Callable[..., Any]) -> None:
        super().__init__()
        self.policy = policy
        self.forward = function


@contextmanager
def evaluation_mode(policy: ActorCriticPolicy) -> Iterator[None]:
    """For a pass that SB3 does not make: without gradients, and afterwards mode, buffers and generators are as before."""
    training = policy.training
    with th.no_grad(), kept_buffers(policy), kept_generators(policy.device):
        policy.set_training_mode(False)
        try:
            yield
        finally:
            policy.set_training_mode(training)


@contextmanager
def kept_buffers(policy: ActorCriticPolicy) -> Iterator[None]:
    """Put the buffers of a policy back afterwards."""
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in policy.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with th.no_grad():
            for module, name, buffer, before in buffers:
                # A module may have put another tensor in its place. One whose elements share memory cannot be written to
                module._buffers[name] = buffer if th.equal(buffer, before) else buffer.copy_(before)


def kept_generators(device: th.device) -> AbstractContextManager[None]:
    """Put torch's random generators back afterwards."""
    return th.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def is_of_libraries(policy: nn.Module) -> bool:
    """Whether a policy and all of its modules are of SB3's and torch's own classes."""
    parts = [*policy.modules(), getattr(policy, "action_dist", None)]
    libraries = ("stable_baselines3.", "sb3_contrib.", "torch.", recurrent_policies.__name__)
    return all(type(part).__module__.startswith(libraries) for part in parts)


def is_own(policy: ActorCriticPolicy, *methods: str) -> bool:
    """Whether methods of a policy are SB3's or contrib's own."""
    bases = MaskableActorCriticPolicy, MaskableMlpLstmPolicy, RecurrentActorCriticPolicy, ActorCriticPolicy
    base = next((base for base in bases if isinstance(policy, base)), ActorCriticPolicy)
    return all(getattr(type(policy), name, None) is getattr(base, name) for name in methods)


def has_contribs_memory(policy: Any) -> bool:
    """Whether a policy has a memory, and is contrib's but for its networks."""
    if not isinstance(policy, RecurrentActorCriticPolicy):
        return False
    methods = ("forward", "evaluate_actions", "get_distribution", "predict_values", "_process_sequence")
    return is_own(policy, *methods, "_get_action_dist_from_latent")


def is_of_contrib(policy: Any) -> bool:
    """Whether a policy is exactly one of contrib's with action masks, made of the libraries' modules, and without hooks."""
    return type(policy) in masks.POLICIES.values() and is_of_libraries(policy) and not has_hooks(policy)


def latents(policy: Any, observations: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
    """What the last layers of actor and critic see."""
    features = policy.extract_features(observations)
    if policy.share_features_extractor:
        return tuple(policy.mlp_extractor(features))
    return policy.mlp_extractor.forward_actor(features[0]), policy.mlp_extractor.forward_critic(features[1])


def has_hooks(policy: ActorCriticPolicy) -> bool:
    """Whether somebody watches the calls of a policy's modules, or its gradients, which must then be made as by SB3."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return (
        any(getattr(module, name) for module in policy.modules() for name in names)
        or any(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None) for p in policy.parameters())
        # For all modules there are
        or any(getattr(nn.modules.module, f"_global{name}") for name in names)
    )


def is_standard_mlp(policy: ActorCriticPolicy) -> bool:
    """Whether the policy is one of the libraries' that sees a vector, Gaussian or categorical, on a CPU."""
    return (
        is_of_libraries(policy)
        and not has_hooks(policy)
        and policy.device.type == "cpu"
        and sees_vector(policy)
        and type(policy.mlp_extractor) is MlpExtractor
        and (type(policy.action_dist) in DISTRIBUTIONS or isinstance(policy.action_dist, MaskableDistribution))
        and all(parameter.dtype == th.float32 for parameter in policy.parameters())
        and all(isinstance(network[-1], nn.Linear) for network in networks(policy))
        and all(_is_linear_or_function(layer) for network in networks(policy) for layer in network)
    )


def sees_vector(policy: ActorCriticPolicy) -> bool:
    """Whether the features of actor and critic are nothing but the observations, whatever their parts, as one vector."""
    space = policy.observation_space
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    # Images are scaled
    has_images = policy.normalize_images and any(is_image_space(part) for part in parts)
    return not has_images and _only_flattens(policy.pi_features_extractor) and _only_flattens(policy.vf_features_extractor)


def _only_flattens(extractor: BaseFeaturesExtractor) -> bool:
    modules: list[nn.Module] = []
    if type(extractor) is FlattenExtractor:
        modules = [extractor.flatten]
    elif type(extractor) is CombinedExtractor:
        modules = [*extractor.extractors.values()]
    return bool(modules) and all(type(module) is nn.Flatten for module in modules)


def vector(policy: ActorCriticPolicy, observations: PyTorchObs) -> th.Tensor:
    """What a policy that sees a vector sees, of shape ``(batch, n)``."""
    space = policy.observation_space
    if type(space) is spaces.Box and len(space.shape) == 1:
        return observations.float()  # type: ignore[union-attr]
    return BasePolicy.extract_features(policy, observations, policy.pi_features_extractor)


def networks(policy: ActorCriticPolicy) -> tuple[list[Any], list[Any]]:
    """The layers of a policy that sees a vector."""
    extractor = policy.mlp_extractor
    return [*extractor.policy_net, policy.action_net], [*extractor.value_net, policy.value_net]


def _is_linear_or_function(layer: nn.Module) -> bool:
    if type(layer) is nn.Linear:
        return layer.bias is not None
    return next(layer.parameters(), None) is None and not isinstance(layer, nn.modules.dropout._DropoutNd | nn.RReLU)
