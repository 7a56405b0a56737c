"""``RolloutBuffer.add`` with less overhead."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_ppo_variants.buffers import OWN_BUFFERS, STATES


def lane(buffer: RolloutBuffer, has_values: bool) -> Callable[..., None] | None:
    """A function that does what ``buffer.add`` does."""
    if type(buffer) not in OWN_BUFFERS or buffer.device.type != "cpu":
        return None
    space, action_shape = buffer.observation_space, buffer.actions.shape[1:]
    # The parts of a dictionary, or an observation that has none
    parts: dict[Any, spaces.Space] = space.spaces if isinstance(space, spaces.Dict) else {None: space}
    arrays: Any = buffer.observations if isinstance(space, spaces.Dict) else {None: buffer.observations}
    # Discrete ones have another dimension in the buffer
    shapes = {name: arrays[name].shape[1:] if isinstance(part, spaces.Discrete) else None for name, part in parts.items()}

    def add(
        obs: np.ndarray | dict[str, np.ndarray],
        action: np.ndarray,
        reward: np.ndarray,
        start: np.ndarray,
        value: th.Tensor,
        log_prob: th.Tensor,
        action_masks: np.ndarray | None = None,
        lstm_states: Any = None,
    ) -> None:
        pos = buffer.pos
        for name, shape in shapes.items():
            part: Any = obs if name is None else obs[name]
            arrays[name][pos] = part if shape is None else np.reshape(part, shape)
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
