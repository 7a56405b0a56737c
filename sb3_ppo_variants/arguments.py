"""The arguments of the algorithms: errors that name the argument and the value, before anything is trained."""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_ppo_variants import checks, masks, recurrent_policies
from sb3_ppo_variants.buffers import OWN_BUFFERS


class Default(int):
    """A default that does not hold for policies with memory: these have ``WITH_MEMORY``, as in contrib's ``RecurrentPPO``."""


N_STEPS, BATCH_SIZE = Default(2048), Default(64)
WITH_MEMORY = 128


def handed_on(local_variables: dict[str, Any], *own: str) -> dict[str, Any]:
    """Of the local variables of a constructor, the arguments that it passes on: all but its ``own``."""
    return {name: value for name, value in local_variables.items() if name not in ("self", "__class__", *own)}


@contextmanager
def as_errors(what: str) -> Iterator[None]:
    """Turn assertions, with which SB3 checks spaces and policies, into errors that say what is wrong."""
    try:
        yield
    except AssertionError as error:
        raise checks.ArgumentError(f"{what}: {error}") from error


def check_arguments(algorithm: Any) -> None:
    """Check the arguments of the constructor or ``load``, and make NumPy's numbers Python's, as torch may refuse them."""
    a, cls = algorithm, algorithm.policy_class
    if not (isinstance(cls, type) and issubclass(cls, ActorCriticPolicy | MaskableActorCriticPolicy)):
        why = f"{type(a).__name__} cannot use the policies (and the saved models) of other algorithms"
        raise ValueError(f"policy must be an ActorCriticPolicy, or contrib's with masks, but is {cls}: {why}")
    if isinstance(inspect.getattr_static(a, "objective", None), FunctionType | None):
        raise TypeError(f"objective of {type(a).__name__} must be a static method: objective = staticmethod(...)")
    for name in ("n_steps", "batch_size"):
        if issubclass(cls, RecurrentActorCriticPolicy) and isinstance(getattr(a, name), Default):
            setattr(a, name, WITH_MEMORY)
    for name in ("n_steps", "batch_size", "n_epochs"):
        setattr(a, name, checks.check_integer(name, getattr(a, name), minimum=1))
    checks.check_number("learning_rate", a.learning_rate, minimum=0, scheduled=True)
    if not callable(a.learning_rate):
        a.learning_rate = float(a.learning_rate)
    for name in ("gamma", "gae_lambda"):
        checks.check_number(name, getattr(a, name), minimum=0, maximum=1)
    for name in ("clip_range", "clip_range_vf"):
        checks.check_number(name, getattr(a, name), above=0, optional=True, infinite=True, scheduled=True)
    checks.check_number("ent_coef", a.ent_coef, scheduled=True)
    checks.check_number("vf_coef", a.vf_coef, minimum=0, scheduled=True)
    for name in ("max_grad_norm", "target_kl"):
        checks.check_number(name, getattr(a, name), above=0, optional=True, infinite=True)
    a.use_sde = checks.check_choice("use_sde", a.use_sde, (True, False))
    a.sde_sample_freq = checks.check_integer("sde_sample_freq", a.sde_sample_freq, minimum=-1)
    for name in ("policy_kwargs", "rollout_buffer_kwargs"):
        if not isinstance(getattr(a, name), dict):
            raise TypeError(f"{name} must be a dictionary, but is {getattr(a, name)!r}")
    if not (a.rollout_buffer_class is None or callable(a.rollout_buffer_class)):
        raise TypeError(f"rollout_buffer_class must be a class or None, but is {a.rollout_buffer_class!r}")
    a.seed = None if a.seed is None else checks.check_integer("seed", a.seed, minimum=0)
    a._stats_window_size = checks.check_integer("stats_window_size", a._stats_window_size, minimum=1)
    a.normalize_advantage = checks.check_choice("normalize_advantage", a.normalize_advantage, (True, False, "batch"))
    a.compile = checks.check_choice("compile", a.compile, (True, False, "auto"))
    if a.normalize_advantage is True and a.batch_size == 1:
        raise checks.ArgumentError("batch_size must be greater than 1 with normalize_advantage=True, but is 1")
    _check_sequence_length(a)
    if not hasattr(a, "action_space"):
        raise ValueError("env must be an environment or the id of one, but is None")
    if a.use_sde and not isinstance(a.action_space, spaces.Box):
        # SB3 looks at this in its constructor, not in load
        raise ValueError(f"use_sde must be False where actions are not continuous, but those of env are {a.action_space}")
    space = a.observation_space
    if recurrent_policies.takes_masks(cls):
        masks.heads_of(a.action_space)
        space = masks.visible_space(cls, space)
    has_extractor = "features_extractor_class" in a.policy_kwargs
    name = next((name for name, policy in a.policy_aliases.items() if policy is cls and not has_extractor), "")
    if "MultiInput" in name and not isinstance(space, spaces.Dict):
        raise ValueError(f"policy is for dictionaries of observations, but those of env are {a.observation_space}")
    if "MultiInput" not in name and name and isinstance(space, spaces.Dict):
        needed = name.replace("Mlp", "MultiInput").replace("Cnn", "MultiInput")
        raise ValueError(f"policy must be {needed} for dictionaries of observations, but is {cls.__name__}")


def _check_sequence_length(algorithm: Any) -> None:
    a, length = algorithm, algorithm.sequence_length
    if length is None:
        return
    a.sequence_length = length = checks.check_integer("sequence_length", length, minimum=1)
    if not issubclass(a.policy_class, RecurrentActorCriticPolicy):
        raise ValueError(f"sequence_length must be None with {a.policy_class.__name__}, which has no memory, but is {length}")
    if a.rollout_buffer_class not in (None, *OWN_BUFFERS):
        raise ValueError(f"sequence_length must be None with {a.rollout_buffer_class}, which cuts its own, but is {length}")
    for name in ("n_steps", "batch_size"):
        if getattr(a, name) % length > 0:
            raise ValueError(f"{name} must be a multiple of sequence_length={length}, but is {getattr(a, name)}")


def check_rollout_size(algorithm: Any) -> None:
    """Check that there is more than one sample where advantages are normalised."""
    a = algorithm
    if a.normalize_advantage and a.n_steps * a.n_envs == 1:
        raise checks.ArgumentError(
            f"n_steps * n_envs = {a.n_steps} * {a.n_envs} = 1, but advantages can only be normalised over more than one sample"
        )


def warn_of_truncated_minibatches(algorithm: Any, outermost: type) -> None:
    """Warn, in SB3's words, of a smaller minibatch at the end of epochs, where a subclass of ``outermost`` is called."""
    a = algorithm
    size = a.n_steps * a.n_envs
    if size % a.batch_size > 0:
        # Subclasses may have constructors, and the warning is to point to where the outermost is called
        constructors = [cls for cls in type(a).__mro__ if "__init__" in vars(cls)]
        warnings.warn(
            f"You have specified a mini-batch size of {a.batch_size}, but because the `RolloutBuffer` is of size "
            f"`n_steps * n_envs = {size}`, after every {size // a.batch_size} untruncated mini-batches, there will be a "
            f"truncated mini-batch of size {size % a.batch_size} (n_steps={a.n_steps} and n_envs={a.n_envs})",
            stacklevel=3 + constructors.index(outermost),
        )
