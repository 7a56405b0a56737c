"""
Where may this package's own code stand in for SB3's? Only where nobody has changed what SB3's does. The questions to ask of
objects, from weak to strong.
"""

from functools import cache, partialmethod
from types import FunctionType
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
    SquashedDiagGaussianDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, MlpExtractor, NatureCNN
from torch import nn

# The names of the parts of SB3's policies
POLICY_PARTS = {
    "features_extractor",
    "pi_features_extractor",
    "vf_features_extractor",
    "mlp_extractor",
    "action_net",
    "value_net",
}
# Their classes, and the names of their own parts where only those are called
SB3_PARTS: dict[type[nn.Module], set[str]] = {
    CombinedExtractor: {"extractors"},
    FlattenExtractor: {"flatten"},
    MlpExtractor: {"policy_net", "value_net"},
    NatureCNN: {"cnn", "linear"},
}
SB3_MODULES = (*SB3_PARTS, nn.Conv2d, nn.Linear, nn.ModuleDict, nn.Sequential)
SB3_DISTRIBUTIONS = (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
    SquashedDiagGaussianDistribution,
    StateDependentNoiseDistribution,
)
# What is called in them
MODULE_METHODS = ("forward", "forward_actor", "forward_critic")


def is_of_library(instance: Any) -> bool:
    """
    Whether an object's class is SB3's or torch's own.

    :param instance: the object
    :return: whether it is
    """
    return _is_of_library(type(instance).__module__)


def _is_of_library(module: str) -> bool:
    return module.startswith(("stable_baselines3.", "torch."))


@cache
def has_replaced_methods(cls: type) -> bool:
    """
    Whether somebody has replaced a method of one of SB3's classes. ``cache_clear`` is for when that may have happened.

    :param cls: any class
    :return: whether that is so
    """
    return cls.__module__.startswith("stable_baselines3.") and any(map(_is_foreign, vars(cls).values()))


def _is_foreign(method: Any) -> bool:
    if not isinstance(method, FunctionType):
        return isinstance(method, partialmethod) or (callable(method) and not isinstance(method, staticmethod | type))
    # Where it was written, and what it wraps: a decorator leaves the name of what it decorates
    wrapped = getattr(method, "__wrapped__", None)
    is_own = _is_of_library(method.__globals__.get("__name__", ""))
    return not is_own or (wrapped is not None and _is_foreign(wrapped))


def is_plain(instance: Any, *classes: type) -> bool:
    """
    Whether an object does what SB3's class does, so that this package's own code can stand in for its methods.

    :param instance: the object
    :param classes: SB3's classes, or torch's
    :return: whether it is of one of them, not of a subclass, and nobody has replaced a method, in the object or in a class
        of SB3's (torch's are not looked at)
    """
    kind = type(instance)
    return (
        kind in classes
        and not any(callable(getattr(kind, name, None)) for name in vars(instance))
        and not any(map(has_replaced_methods, kind.__mro__))
    )


def is_standard_buffer(buffer: RolloutBuffer) -> bool:
    """
    Whether a rollout buffer is one of SB3's own, so that its data may be read without its methods.

    :param buffer: any rollout buffer
    :return: whether it is
    """
    return is_plain(buffer, RolloutBuffer, DictRolloutBuffer)


def has_hooks(policy: ActorCriticPolicy) -> bool:
    """
    Whether somebody watches the calls of a policy's modules, or its gradients, which must then be made as SB3 makes them.

    :param policy: any policy
    :return: whether a module or a parameter has a hook
    """
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    parameter_names = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return (
        any(getattr(module, name) for module in policy.modules() for name in names)
        or any(getattr(parameter, name, None) for parameter in policy.parameters() for name in parameter_names)
        # For all modules there are
        or any(getattr(nn.modules.module, f"_global{name}") for name in names)
    )


def leaves_distribution(policy: ActorCriticPolicy, method: str) -> bool:
    """
    Whether a method leaves in ``policy.action_dist`` the distribution of its log probabilities, as SB3's own do.

    :param policy: any policy, or a module that wraps one
    :param method: "forward" or "evaluate_actions"
    :return: whether it does
    """
    return is_own(policy, method, "_get_action_dist_from_latent")


def is_own(policy: ActorCriticPolicy, *methods: str) -> bool:
    """
    Whether methods of a policy are SB3's own.

    :param policy: any policy, or a module that wraps one
    :param methods: their names
    :return: whether all are
    """
    return all(
        getattr(type(policy), name, None) is getattr(ActorCriticPolicy, name) and name not in vars(policy) for name in methods
    )


def is_of_sb3(policy: ActorCriticPolicy) -> bool:
    """
    Whether all parameters of the policy are in SB3's own classes, where each gets a gradient in each minibatch, on a CPU.
    Modules without parameters, as the functions of a user's own networks, may be of any class.

    :param policy: any policy
    :return: whether it is
    """
    return (
        is_plain(policy, ActorCriticPolicy, ActorCriticCnnPolicy, MultiInputActorCriticPolicy)
        and is_plain(policy.action_dist, *SB3_DISTRIBUTIONS)
        and policy.device.type == "cpu"
        and len({parameter.dtype for parameter in policy.parameters()}) == 1
        # Neither hooks nor methods set on an instance
        and not has_hooks(policy)
        and not any(vars(module).keys() & {*MODULE_METHODS} for module in policy.modules())
        and not any(map(has_replaced_methods, SB3_MODULES))
        # Nothing put in place of a part, or beside it
        and policy._parameters.keys() <= {"log_std"}
        and _parts(policy) <= POLICY_PARTS
        and all(_parts(module) <= SB3_PARTS[type(module)] for module in policy.modules() if type(module) in SB3_PARTS)
        and policy.features_extractor is policy.pi_features_extractor
        and (policy.features_extractor is policy.vf_features_extractor) == policy.share_features_extractor
        and all(
            type(module) in SB3_MODULES or next(module.parameters(), None) is None
            for module in policy.modules()
            if module is not policy
        )
    )


def _parts(module: nn.Module) -> set[str]:
    """The names of the parts of a module that have parameters."""
    return {name for name, part in module.named_children() if next(part.parameters(), None) is not None}


def is_standard_mlp(policy: ActorCriticPolicy) -> bool:
    """
    Whether the policy is exactly SB3's MLP policy for vectors, with a Gaussian or categorical distribution, on a CPU.

    :param policy: any policy
    :return: whether the classes of this module can stand in for it
    """
    space = policy.observation_space
    return (
        is_of_sb3(policy)
        and type(policy) is ActorCriticPolicy
        and type(policy.features_extractor) is FlattenExtractor
        and type(policy.features_extractor.flatten) is nn.Flatten
        and type(policy.action_dist) in (DiagGaussianDistribution, CategoricalDistribution)
        and isinstance(space, spaces.Box)
        and len(space.shape) == 1
        # Others are reshaped by the policy
        and not (isinstance(policy.action_space, spaces.Box) and len(policy.action_space.shape) != 1)
        and all(parameter.dtype == th.float32 for parameter in policy.parameters())
        # It may have been made a buffer
        and (type(policy.action_dist) is CategoricalDistribution or "log_std" in policy._parameters)
        and all(type(head) is nn.Linear for head in (policy.action_net, policy.value_net))
        and all(_is_linear_or_function(layer) for layers in networks(policy) for layer in layers)
    )


def networks(policy: ActorCriticPolicy) -> tuple[list[Any], list[Any]]:
    """
    The layers of ``MlpPolicy``.

    :param policy: a policy that ``is_standard_mlp``
    :return: those from the observation to the action distribution, and those to the value
    """
    extractor = policy.mlp_extractor
    return [*extractor.policy_net, policy.action_net], [*extractor.value_net, policy.value_net]


def _is_linear_or_function(layer: nn.Module) -> bool:
    if type(layer) is nn.Linear:
        return layer.bias is not None
    return next(layer.parameters(), None) is None
