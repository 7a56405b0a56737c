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
    observations, actions, rewards = buffer.observations, buffer.actions, buffer.rewards
    episode_starts, values, log_probs = buffer.episode_starts, buffer.values, buffer.log_probs
    obs_shape, action_shape = observations.shape[1:], actions.shape[1:]
    states = [getattr(buffer, name) for name in STATES if hasattr(buffer, name)]

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
        observations[pos] = obs.reshape(obs_shape)
        actions[pos] = action.reshape(action_shape)
        rewards[pos] = reward
        episode_starts[pos] = start
        if action_masks is not None:
            buffer.action_masks[pos] = action_masks  # type: ignore[attr-defined]
        if not has_values:
            values[pos] = value.numpy().ravel()
            log_probs[pos] = log_prob.numpy()
            if lstm_states is not None:
                for array, state in zip(states, (*lstm_states.pi, *lstm_states.vf), strict=True):
                    array[pos] = state.numpy()
        buffer.pos = pos + 1
        buffer.full = buffer.pos == buffer.buffer_size

    return add
