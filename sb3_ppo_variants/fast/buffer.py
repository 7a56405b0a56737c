"""``RolloutBuffer.add`` with less overhead."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_ppo_variants.buffers import BUFFERS_OF_VECTORS, STATES


def lane(buffer: RolloutBuffer, has_values: bool) -> Callable[..., None] | None:
    """A function that does what ``buffer.add`` does."""
    if type(buffer) not in BUFFERS_OF_VECTORS or len(buffer.obs_shape) != 1 or buffer.device.type != "cpu":
        return None
    obs_shape, action_shape = buffer.observations.shape[1:], buffer.actions.shape[1:]

    def add(
        obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        start: np.ndarray,
        value: th.Tensor,
        log_prob: th.Tensor,
        action_masks: np.ndarray | None = None,
        lstm_states: Any = None,
    ) -> None:
        pos = buffer.pos
        buffer.observations[pos] = obs.reshape(obs_shape)
        buffer.actions[pos] = action.reshape(action_shape)
        buffer.rewards[pos] = reward
        buffer.episode_starts[pos] = start
        if action_masks is not None:
            buffer.action_masks[pos] = action_masks  # type: ignore[attr-defined]
        if not has_values:
            buffer.values[pos] = value.numpy().ravel()
            buffer.log_probs[pos] = log_prob.numpy()
            if lstm_states is not None:
                for name, state in zip(STATES, (*lstm_states.pi, *lstm_states.vf), strict=True):
                    getattr(buffer, name)[pos] = state.numpy()
        buffer.pos = pos + 1
        buffer.full = buffer.pos == buffer.buffer_size

    return add
