"""contrib's rollout buffers for policies with action masks, with masks of one byte an action."""

from typing import Any

import numpy as np
from gymnasium import spaces
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from sb3_ppo_variants.masks import heads_of


class MaskedRolloutBuffer(MaskableRolloutBuffer):
    """contrib's ``MaskableRolloutBuffer``, of ``bool`` instead of ``float32``."""

    def reset(self) -> None:
        """Empty the buffer. Not as contrib does it, which would fill masks of four bytes first."""
        self.mask_dims = sum(heads_of(self.action_space))
        self.action_masks = np.ones((self.buffer_size, self.n_envs, self.mask_dims), dtype=bool)
        RolloutBuffer.reset(self)


class MaskedDictRolloutBuffer(MaskableDictRolloutBuffer):
    """contrib's ``MaskableDictRolloutBuffer``, of ``bool`` instead of ``float32``."""

    def reset(self) -> None:
        """Empty the buffer. Not as contrib does it, which would fill masks of four bytes first."""
        self.mask_dims = sum(heads_of(self.action_space))
        self.action_masks = np.ones((self.buffer_size, self.n_envs, self.mask_dims), dtype=bool)
        DictRolloutBuffer.reset(self)


# Buffers whose samples are those of the rollout, in any order
OWN_BUFFERS = (RolloutBuffer, DictRolloutBuffer, MaskedRolloutBuffer, MaskedDictRolloutBuffer)
BUFFERS_OF_VECTORS = (RolloutBuffer, MaskedRolloutBuffer)


def masked_buffer(chosen: Any, space: spaces.Space) -> Any:
    """
    The class of the rollout buffer of a policy with masks.

    :param chosen: the class that the user, or a saved model, names; ``None`` for none
    :param space: what the policy sees
    :return: that class, but for SB3's and contrib's own
    :raises ValueError: if it is one without masks
    """
    plain = (None, RolloutBuffer, DictRolloutBuffer, MaskableRolloutBuffer, MaskableDictRolloutBuffer)
    if chosen in (*plain, MaskedRolloutBuffer, MaskedDictRolloutBuffer):
        return MaskedDictRolloutBuffer if isinstance(space, spaces.Dict) else MaskedRolloutBuffer
    if isinstance(chosen, type) and not issubclass(chosen, MaskableRolloutBuffer | MaskableDictRolloutBuffer):
        raise ValueError(f"rollout_buffer_class must keep action masks, as contrib's MaskableRolloutBuffer, but is {chosen}")
    return chosen
