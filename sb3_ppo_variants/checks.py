"""Checks of arguments, of what the environment returns and of what the policy does, whose errors name what is wrong."""

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from torch import nn


class ArgumentError(ValueError, AssertionError):
    """An argument is out of range. SB3 asserts in the same place."""


class NonFiniteEnvironmentError(ValueError):
    """The environment returned NaN or infinity."""


class NonFinitePolicyError(FloatingPointError, ValueError):
    """The policy made NaN or infinity of finite observations. Also a ``ValueError``, as torch raises in the same place."""

    @classmethod
    def of(cls, policy: nn.Module) -> "NonFinitePolicyError":
        """The error, with the names of the parameters that are wrong."""
        names = [f"policy.{name}" for name, parameter in policy.named_parameters() if not th.isfinite(parameter).all()]
        cause = f"these parameters are not finite: {_short(names)}" if names else "its numbers overflow"
        return cls(f"The policy made NaN or infinity of finite observations: {cause}. No action has been taken.")


class NonFiniteUpdateError(FloatingPointError, ValueError):
    """An update made a parameter or a loss NaN or infinite; it is undone. A ``ValueError``, so RL Zoo prunes the trial."""

    @classmethod
    def of(cls, names: Sequence[str], num_timesteps: int) -> "NonFiniteUpdateError":
        """The error, with the names of what has become NaN or infinite, and advice."""
        return cls(
            f"The policy update after {num_timesteps} timesteps made these NaN or infinite: {_short(names)}. "
            "The model has been put back to its state before that update and can be saved. "
            "Try a smaller learning_rate or n_epochs, a max_grad_norm, or VecNormalize for the rewards."
        )


def _short(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= 3 else [*names[:3], f"and {len(names) - 3} more"])


def check_number(
    name: str,
    value: Any,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    above: float = -math.inf,
    optional: bool = False,
    infinite: bool = False,
    scheduled: bool = False,
) -> None:
    """Check that an argument is a real number in a range; a schedule's are checked when it is called."""
    if (optional and value is None) or (scheduled and callable(value)):
        return
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        kinds = ["a number", *["a schedule"] * scheduled, *["None"] * optional]
        raise TypeError(f"{name} must be {', '.join(kinds[:-1])}{' or ' * (len(kinds) > 1)}{kinds[-1]}, but is {value!r}")
    number = float(value)
    if math.isnan(number) or (math.isinf(number) and not infinite):
        raise ArgumentError(f"{name} must be finite, but is {value}")
    if number <= above:
        raise ArgumentError(f"{name} must be greater than {above}, but is {value}")
    if not minimum <= number <= maximum:
        bounds = f"at least {minimum}" if maximum == math.inf else f"between {minimum} and {maximum}"
        raise ArgumentError(f"{name} must be {bounds}, but is {value}")


def check_integer(name: str, value: Any, minimum: int) -> int:
    """Check that an argument is an integer of at least ``minimum``; the value as Python's, as torch takes no others."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, but is {value!r}")
    check_number(name, int(value), minimum=minimum)
    return int(value)


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """Check that an argument is one of a few values; the choice: a truth value or text of NumPy's as Python's."""
    value = value.item() if isinstance(value, np.generic) else value
    # By identity for booleans, as 1 == True
    if not any(value is choice or (isinstance(choice, str) and value == choice) for choice in choices):
        raise ArgumentError(f"{name} must be one of {', '.join(map(repr, choices))}, but is {value!r}")
    return value


def scheduled_value(
    name: str, schedule: Callable[[float], float], progress: float, minimum: float = -math.inf, infinite: bool = False
) -> float:
    """What a schedule returns at a remaining progress; checked as by ``check_number``."""
    where = f"{name} (at remaining progress {progress:g})"
    # SB3's wrapper converts to float itself, with an error that does not name the argument
    returned = getattr(schedule, "value_schedule", schedule)(progress)
    try:
        value = float(returned)
    except (TypeError, ValueError):
        raise TypeError(f"{where} must be a number, but is {returned!r}") from None
    check_number(where, value, minimum=minimum, infinite=infinite)
    return value


def all_finite(array: np.ndarray) -> bool:
    """Whether all numbers of an array are finite."""
    if array.dtype.kind != "f":
        return True
    # The sum of the squares is quicker to compute, and not finite if one of them is not
    return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


def check_observation(observation: np.ndarray | dict[str, np.ndarray]) -> None:
    """Check that what the environment returned is finite, or raise ``NonFiniteEnvironmentError``."""
    for name, part in observation.items() if isinstance(observation, dict) else [("observation", observation)]:
        if isinstance(part, np.ndarray) and not all_finite(part):
            index = tuple(np.argwhere(~np.isfinite(part))[0].tolist())
            raise NonFiniteEnvironmentError(
                f"The environment returned an observation that is not finite: {name}{list(index)} = {part[index]}"
            )


def check_rewards(buffer: RolloutBuffer) -> None:
    """Check that the rewards of a rollout are finite, or raise ``NonFiniteEnvironmentError``."""
    rewards = buffer.rewards
    if not np.isfinite(rewards).all():
        step, env = np.argwhere(~np.isfinite(rewards))[0]
        raise NonFiniteEnvironmentError(
            f"The environment returned a reward that is not finite: {rewards[step, env]} "
            f"at step {step} of the rollout in environment {env}"
        )
