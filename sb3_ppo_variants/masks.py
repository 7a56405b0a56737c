"""Action masks: what they are for an action space, where an environment gives them, and errors that say what is wrong."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import (
    MaskableActorCriticCnnPolicy,
    MaskableActorCriticPolicy,
    MaskableMultiInputActorCriticPolicy,
)
from sb3_contrib.common.maskable.utils import EXPECTED_METHOD_NAME, is_masking_supported
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from stable_baselines3.common.policies import ActorCriticCnnPolicy, BasePolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

# The name of a mask in observations and infos, as in PettingZoo, RLlib and Gymnasium
KEY = "action_mask"

# contrib's policies by the names that they have here
POLICIES: dict[str, type[BasePolicy]] = {
    "MaskableMlpPolicy": MaskableActorCriticPolicy,
    "MaskableCnnPolicy": MaskableActorCriticCnnPolicy,
    "MaskableMultiInputPolicy": MaskableMultiInputActorCriticPolicy,
}

# Policies with masks for dictionaries of observations, even of one part
FOR_DICTS = (MaskableMultiInputActorCriticPolicy, RecurrentMultiInputActorCriticPolicy)

# The attribute of observations to which masks have been attached
CARRIED = "action_masks"

# Where masks come from, in the order in which they are looked for
OBSERVATION = f"the key {KEY!r} of the observations"
INFO = f"info[{KEY!r}] of reset and step"
METHOD = f"the method {EXPECTED_METHOD_NAME}()"
HOW = (
    f"Give them as {OBSERVATION} (a Dict), as {INFO}, or by {METHOD} of the environment or of a wrapper such as "
    "sb3_contrib.common.wrappers.ActionMasker"
)


def heads_of(space: spaces.Space) -> tuple[int, ...]:
    """
    How many actions each part of an action chooses from. A mask has one truth value for each of these actions, part by part,
    as in sb3-contrib: for ``MultiBinary(n)``, n times "may be 0" and "may be 1".

    :param space: the action space
    :return: a number for each part; their sum is the length of a mask
    :raises ValueError: if there are no masks for such a space
    """
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return tuple(int(n) for n in space.nvec)
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return (2,) * space.shape[0]
    kinds = "Discrete, or MultiDiscrete or MultiBinary of one dimension"
    raise ValueError(f"Policies with action masks are for actions that are {kinds}, but those of env are {space}")


@cache
def _starts(heads: tuple[int, ...]) -> np.ndarray:
    return np.cumsum((0, *heads[:-1]))


def checked(masks: Any, heads: tuple[int, ...], whose: Callable[[int], str]) -> np.ndarray:
    """
    Action masks as truth values.

    :param masks: one mask for each environment: bool or 0/1, of any shape
    :param heads: as from ``heads_of``
    :param whose: says whose mask the one of an index is
    :return: shape ``(n_envs, sum(heads))``
    :raises ValueError: if they are something else, or leave no action
    """
    n = sum(heads)
    # Rows of different lengths are no array, nor are parts, which Gymnasium has in tuples
    rows = [np.hstack(mask) if isinstance(mask, tuple) else np.asarray(mask) for mask in masks]
    for i, row in enumerate(rows):
        if row.dtype.kind not in "biuf":
            raise ValueError(f"The action mask {whose(i)} must be of bool or of 0 and 1, but is {row}")
        if row.size != n:
            parts = "" if len(heads) == 1 else f" (in {len(heads)} parts)"
            hint = "; are they those of several steps, by VecFrameStack?" if row.size and row.size % n == 0 else ""
            raise ValueError(f"The action mask {whose(i)} has {row.size} entries, but there are {n} actions{parts}{hint}")
    found = np.stack([row.reshape(n) for row in rows])
    if found.dtype != bool:
        wrong = (found != 0) & (found != 1)
        if wrong.any():
            i, j = np.argwhere(wrong)[0]
            hint = "; if VecNormalize has changed it, see its norm_obs_keys" if found.dtype.kind == "f" else ""
            raise ValueError(f"The action mask {whose(i)} must be of bool or of 0 and 1, but entry {j} is {found[i, j]}{hint}")
        found = found == 1
    is_possible = np.logical_or.reduceat(found, _starts(heads), axis=1)
    if not is_possible.all():
        i, head = np.argwhere(~is_possible)[0]
        part = "" if len(heads) == 1 else f" for part {head} of the action"
        raise ValueError(
            f"The action mask {whose(i)} leaves no action{part}: all of its {heads[head]} entries there are False"
        )
    return found


def source_of(env: VecEnv) -> str | None:
    """Where an environment that has been reset gives action masks, if it does."""
    space = env.observation_space
    if isinstance(space, spaces.Dict) and KEY in space.spaces:
        return OBSERVATION
    # Vectorized environments of other libraries may lack these, and cannot be asked for attributes
    if any(KEY in info for info in getattr(env.unwrapped, "reset_infos", ())):
        return INFO
    try:
        return METHOD if is_masking_supported(env) else None
    except (AttributeError, NotImplementedError):
        return None


class Masks:
    """
    The action masks of an environment. Masks in observations and infos are handed over by the caller that steps the
    environment, and kept by that caller from one training to the next, as the observations are.

    :param env: the environment, which has been reset
    :raises ValueError: if it gives no masks; says how to give them
    """

    def __init__(self, env: VecEnv) -> None:
        self.env = env
        self.heads = heads_of(env.action_space)
        self.source = source_of(env)
        if self.source is None:
            raise ValueError(f"The policy takes action masks, but the environment gives none. {HOW}")
        self.methods: list[Callable[[], Any]] = []
        if self.source == METHOD and type(env.unwrapped) is DummyVecEnv:
            # Looked up once, as that takes longer than most of these methods
            self.methods = [single.get_wrapper_attr(EXPECTED_METHOD_NAME) for single in env.unwrapped.envs]

    def after_reset(self, observations: Any) -> Any:
        """The masks of the first step of all environments, as far as they are known by now."""
        return self._of(observations, self.env.unwrapped.reset_infos if self.source == INFO else ())

    def after_step(self, observations: Any, infos: Sequence[dict[str, Any]], dones: np.ndarray) -> Any:
        """The masks of the next step, as far as they are known by now: after an automatic reset, of the new episode."""
        if self.source == INFO and dones.any():
            reset_infos = self.env.unwrapped.reset_infos
            infos = [reset_infos[i] if done else infos[i] for i, done in enumerate(dones)]
        return self._of(observations, infos)

    def _of(self, observations: Any, infos: Sequence[dict[str, Any]]) -> Any:
        if self.source == OBSERVATION:
            return observations[KEY]
        if self.source == INFO:
            return [info.get(KEY) for info in infos]
        return None

    def before_step(self, known: Any, timestep: int | None = None) -> np.ndarray:
        """
        The masks of the step that is to come.

        :param known: what ``after_reset`` or ``after_step`` has returned
        :param timestep: the present timestep, for errors, if it is known
        :return: truth values of shape ``(n_envs, n_actions)``
        :raises ValueError: if they are no masks, or leave no action
        """
        if self.source == METHOD:
            known = [method() for method in self.methods] if self.methods else self.env.env_method(EXPECTED_METHOD_NAME)
        when = "" if timestep is None else f" at timestep {timestep}"
        return checked(known, self.heads, lambda i: f"of environment {i}{when}")


def visible_space(policy_class: type[BasePolicy], space: spaces.Space) -> spaces.Space:
    """
    What a policy with masks sees of an observation space: all but the mask. It is a Dict if several parts remain, or if the
    policy is for Dicts.

    :param policy_class: a class of contrib's, or derived from it
    :param space: the observation space of the environment
    :return: the observation space of the policy
    """
    if not (isinstance(space, spaces.Dict) and KEY in space.spaces):
        return space
    others = {name: part for name, part in space.spaces.items() if name != KEY}
    is_for_dicts = len(others) != 1 or issubclass(policy_class, FOR_DICTS)
    return spaces.Dict(others) if is_for_dicts else next(iter(others.values()))


def features(policy: BasePolicy, observations: Any) -> Any:
    """Observations as a policy with masks sees them, in ``visible_space``."""
    if not (isinstance(observations, dict) and KEY in observations):
        return observations
    space = policy.observation_space
    if isinstance(space, spaces.Dict) and KEY in space.spaces:
        return observations
    others = {name: part for name, part in observations.items() if name != KEY}
    return others if isinstance(space, spaces.Dict) else next(iter(others.values()))


def given_or_found(given: Any, observations: Any, space: spaces.Space) -> np.ndarray | None:
    """
    The masks for a prediction.

    :param given: by the caller; ``None`` for none
    :param observations: of one environment or several, which may bring their masks along
    :param space: the action space
    :return: shape ``(n_envs, n_actions)``; ``None`` for none
    :raises ValueError: if they are no masks, or leave no action
    """
    if given is None:
        given = observations.get(KEY) if isinstance(observations, dict) else None
        given = getattr(observations, CARRIED, given)
    if given is None:
        return None
    heads = heads_of(space)
    found = np.hstack(given) if isinstance(given, tuple) else np.asarray(given)
    # One mask, or one for each environment
    is_one = found.ndim == 1 or found.size == sum(heads)
    return checked(found[None] if is_one else found, heads, lambda i: f"of observation {i}")


def name_for(policy_class: type[BasePolicy]) -> str:
    """The name of the policy that takes masks, but is otherwise like one that does not."""
    network = "Mlp"
    if issubclass(policy_class, ActorCriticCnnPolicy | RecurrentActorCriticCnnPolicy):
        network = "Cnn"
    elif issubclass(policy_class, MultiInputActorCriticPolicy | RecurrentMultiInputActorCriticPolicy):
        network = "MultiInput"
    memory = "Lstm" if issubclass(policy_class, RecurrentActorCriticPolicy) else ""
    return f"Maskable{network}{memory}Policy"


class _Array(np.ndarray):
    """An array that may have attributes."""


class _Dict(dict[str, np.ndarray]):
    """A dictionary that may have attributes."""


def attach_masks(env: VecEnv) -> None:
    """
    Attach action masks to the observations that an environment returns from its next ``reset`` on, unless they are part of
    them. Code that predicts from an observation alone, as SB3's ``evaluate_policy`` and the RL Zoo, then predicts with masks.

    :param env: the environment; its methods ``reset`` and ``step_wait`` are replaced, as its type must not change
    """
    reset, step_wait = env.reset, env.step_wait
    masks: Masks

    def attached(observations: Any, known: Any) -> Any:
        if masks.source == OBSERVATION:
            return observations
        carrier = _Dict(observations) if isinstance(observations, dict) else observations.view(_Array)
        setattr(carrier, CARRIED, masks.before_step(known))
        return carrier

    def reset_with_masks() -> Any:
        nonlocal masks
        observations = reset()
        masks = Masks(env)
        return attached(observations, masks.after_reset(observations))

    def step_wait_with_masks() -> Any:
        observations, rewards, dones, infos = step_wait()
        known = masks.after_step(observations, infos, dones)
        return attached(observations, known), rewards, dones, infos

    env.reset, env.step_wait = reset_with_masks, step_wait_with_masks  # type: ignore[method-assign]
