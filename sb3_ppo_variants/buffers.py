"""contrib's rollout buffers, for action masks with one byte an action, for memory, and for both."""

from typing import Any

import numpy as np
from gymnasium import spaces
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from sb3_ppo_variants.masks import heads_of


def _all_true(buffer: Any) -> np.ndarray:
    buffer.mask_dims = sum(heads_of(buffer.action_space))
    return np.ones((buffer.buffer_size, buffer.n_envs, buffer.mask_dims), dtype=bool)


class MaskedRolloutBuffer(MaskableRolloutBuffer):
    """contrib's ``MaskableRolloutBuffer``, of ``bool`` instead of ``float32``."""

    def reset(self) -> None:
        """Empty the buffer. Not as contrib does it, which would fill masks of four bytes first."""
        self.action_masks = _all_true(self)
        RolloutBuffer.reset(self)


class MaskedDictRolloutBuffer(MaskableDictRolloutBuffer):
    """contrib's ``MaskableDictRolloutBuffer``, of ``bool`` instead of ``float32``."""

    def reset(self) -> None:
        """Empty the buffer. Not as contrib does it, which would fill masks of four bytes first."""
        self.action_masks = _all_true(self)
        DictRolloutBuffer.reset(self)


class _KeepsMasks:
    """Action masks in a buffer with memory."""

    pos: int

    def reset(self) -> None:
        """Empty the buffer."""
        self.action_masks = _all_true(self)
        super().reset()  # type: ignore[misc]

    def add(self, *args: Any, action_masks: np.ndarray, **kwargs: Any) -> None:
        """Add a step; ``action_masks`` are of shape ``(n_envs, n_actions)``."""
        self.action_masks[self.pos] = action_masks
        super().add(*args, **kwargs)  # type: ignore[misc]


class MaskedRecurrentRolloutBuffer(_KeepsMasks, RecurrentRolloutBuffer):  # type: ignore[misc]
    """contrib's ``RecurrentRolloutBuffer``, and action masks."""


class MaskedRecurrentDictRolloutBuffer(_KeepsMasks, RecurrentDictRolloutBuffer):  # type: ignore[misc]
    """contrib's ``RecurrentDictRolloutBuffer``, and action masks."""


# For vectors and for dictionaries of observations, by what else they keep: action masks, states of a memory
BY_KIND: dict[tuple[bool, bool], tuple[type[RolloutBuffer], type[RolloutBuffer]]] = {
    (False, False): (RolloutBuffer, DictRolloutBuffer),
    (True, False): (MaskedRolloutBuffer, MaskedDictRolloutBuffer),
    (False, True): (RecurrentRolloutBuffer, RecurrentDictRolloutBuffer),
    (True, True): (MaskedRecurrentRolloutBuffer, MaskedRecurrentDictRolloutBuffer),
}
# The arrays of states in those with memory, in the order of contrib's ``RNNStates``
STATES = ("hidden_states_pi", "cell_states_pi", "hidden_states_vf", "cell_states_vf")
# What is in a saved model, or named by a user of contrib, and stands for one of these
MASKABLE = (MaskableRolloutBuffer, MaskableDictRolloutBuffer)
# Buffers whose samples are those of the rollout, in any order
OWN_BUFFERS = tuple(buffer for pair in BY_KIND.values() for buffer in pair)
RECURRENT_BUFFERS = (*BY_KIND[False, True], *BY_KIND[True, True])


def buffer_for(chosen: Any, space: spaces.Space, has_masks: bool, has_memory: bool) -> Any:
    """
    The class of the rollout buffer of a policy with masks, memory or both.

    :param chosen: the class that the user, or a saved model, names; ``None`` for none
    :param space: what the policy sees
    :param has_masks: whether the policy takes action masks
    :param has_memory: whether the policy has a memory
    :return: the chosen class; in place of ``None`` and of SB3's and contrib's own, one that keeps what the policy needs
    :raises ValueError: if the chosen class does not keep what the policy needs
    """
    if chosen in (None, *MASKABLE, *OWN_BUFFERS):
        return BY_KIND[has_masks, has_memory][isinstance(space, spaces.Dict)]
    needed: tuple[type, ...] = BY_KIND[has_masks, True] if has_memory else MASKABLE
    if isinstance(chosen, type) and not issubclass(chosen, needed):
        what = " and ".join(["action masks"] * has_masks + ["states"] * has_memory)
        raise ValueError(f"rollout_buffer_class must keep {what}, as {needed[0].__name__}, but is {chosen}")
    return chosen
