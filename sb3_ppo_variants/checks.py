"""Checks of arguments and of what the environment returns, whose errors name the argument and the value."""

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import RolloutBuffer


class NonFiniteEnvironmentError(ValueError):
    """The environment returned NaN or infinity."""


def check_number(
    name: str,
    value: Any,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    above: float = -math.inf,
    optional: bool = False,
    infinite: bool = False,
) -> None:
    """
    Check that an argument is a real number in a range.

    :param name: name of the argument
    :param value: its value
    :param minimum: smallest value allowed
    :param maximum: largest value allowed
    :param above: the value must be greater than this
    :param optional: whether ``None`` is allowed
    :param infinite: whether infinity is allowed
    :raises TypeError: if it is no number
    :raises ValueError: if it is out of range
    """
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number{' or None' if optional else ''}, but is {value!r}")
    number = float(value)
    if math.isnan(number) or (math.isinf(number) and not infinite):
        raise ValueError(f"{name} must be finite, but is {value}")
    if number <= above:
        raise ValueError(f"{name} must be greater than {above}, but is {value}")
    if not minimum <= number <= maximum:
        bounds = f"at least {minimum}" if maximum == math.inf else f"between {minimum} and {maximum}"
        raise ValueError(f"{name} must be {bounds}, but is {value}")


def check_integer(name: str, value: Any, minimum: float = -math.inf) -> None:
    """
    Check that an argument is an integer of at least ``minimum``.

    :param name: name of the argument
    :param value: its value
    :param minimum: smallest value allowed
    :raises TypeError: if it is no integer
    :raises ValueError: if it is too small
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, but is {value!r}")
    check_number(name, int(value), minimum=minimum)


def check_coefficient(
    name: str,
    value: Any,
    minimum: float = -math.inf,
    above: float = -math.inf,
    optional: bool = False,
    infinite: bool = False,
) -> None:
    """
    Check that an argument is a number in a range, or a schedule: a function of the remaining progress.

    :param name: name of the argument
    :param value: its value; what a schedule returns is checked when it is called
    :param minimum: smallest value allowed
    :param above: the value must be greater than this
    :param optional: whether ``None`` is allowed
    :param infinite: whether infinity is allowed
    :raises TypeError: if it is neither
    :raises ValueError: if it is out of range
    """
    if callable(value):
        return
    try:
        check_number(name, value, minimum=minimum, above=above, optional=optional, infinite=infinite)
    except TypeError:
        kinds = "a number, a schedule or None" if optional else "a number or a schedule"
        raise TypeError(f"{name} must be {kinds}, but is {value!r}") from None


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """
    Check that an argument is one of a few values.

    :param name: name of the argument
    :param value: its value
    :param choices: the values allowed
    :raises ValueError: if it is none of them
    """
    # By identity for booleans, as 1 == True
    if not any(value is choice or (isinstance(choice, str) and value == choice) for choice in choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, but is {value!r}")


def scheduled_value(
    name: str,
    schedule: Callable[[float], float],
    progress: float,
    minimum: float = -math.inf,
    infinite: bool = False,
) -> float:
    """
    Evaluate a schedule.

    :param name: name of the argument
    :param schedule: function of the remaining progress
    :param progress: remaining progress, from 1 to 0
    :param minimum: smallest value allowed
    :param infinite: whether infinity is allowed
    :return: what the schedule returned, as a float
    :raises TypeError: if that is no number
    :raises ValueError: if it is out of range
    """
    where = f"{name} (at remaining progress {progress:g})"
    # SB3's wrapper converts to float itself, with an error that does not name the argument
    returned = getattr(schedule, "value_schedule", schedule)(progress)
    try:
        value = float(returned)
    except (TypeError, ValueError):
        raise TypeError(f"{where} must be a number, but is {returned!r}") from None
    check_number(where, value, minimum=minimum, infinite=infinite)
    return value


def check_observation(observation: np.ndarray | dict[str, np.ndarray] | tuple[np.ndarray, ...] | None) -> None:
    """
    Check that what the environment returned is finite.

    :param observation: the observations of all environments, possibly a dict of them
    :raises NonFiniteEnvironmentError: if there is NaN or infinity in it
    """
    for name, part in observation.items() if isinstance(observation, dict) else [("observation", observation)]:
        if isinstance(part, np.ndarray) and np.issubdtype(part.dtype, np.floating) and not np.isfinite(part).all():
            index = tuple(np.argwhere(~np.isfinite(part))[0].tolist())
            raise NonFiniteEnvironmentError(
                f"The environment returned an observation that is not finite: {name}{list(index)} = {part[index]}"
            )


def check_rewards(buffer: RolloutBuffer) -> None:
    """
    Check that the rewards of a rollout are finite.

    :param buffer: the rollout; what a custom buffer does not have is not checked
    :raises NonFiniteEnvironmentError: if the environment returned NaN or infinity
    """
    rewards = getattr(buffer, "rewards", None)
    if rewards is not None and not np.isfinite(rewards).all():
        step, env = np.argwhere(~np.isfinite(rewards))[0]
        raise NonFiniteEnvironmentError(
            f"The environment returned a reward that is not finite: {rewards[step, env]} "
            f"at step {step} of the rollout in environment {env}"
        )


def check_type(name: str, value: Any, *types: type) -> None:
    """
    Check the type of an argument.

    :param name: name of the argument
    :param value: its value
    :param types: the types allowed
    :raises TypeError: if it is of none of them
    """
    if not isinstance(value, types):
        names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in types)
        raise TypeError(f"{name} must be of type {names}, but is {value!r}")
