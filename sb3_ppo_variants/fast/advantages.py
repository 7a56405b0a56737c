"""``RolloutBuffer.compute_returns_and_advantage`` with less overhead."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_ppo_variants.buffers import OWN_BUFFERS


def lane(buffer: RolloutBuffer) -> Callable[..., None] | None:
    """A function that does what ``buffer.compute_returns_and_advantage`` does."""
    # Other numbers are added up in a wider type
    has_floats = {type(buffer.gamma), type(buffer.gae_lambda)} <= {int, float}
    is_own = type(buffer) in OWN_BUFFERS
    return partial(compute_returns_and_advantage, buffer) if is_own and has_floats else None


def compute_returns_and_advantage(buffer: RolloutBuffer, last_values: th.Tensor, dones: np.ndarray) -> None:
    """Truncated generalized advantage estimation, equations (11) and (12)."""
    if last_values.dtype != th.float32:
        buffer.compute_returns_and_advantage(last_values=last_values, dones=dones)
        return
    # The original's expressions over all steps at once, in its order of operations; only the recursion is left for the loop
    next_non_terminal = np.empty_like(buffer.values)
    next_non_terminal[:-1] = 1.0 - buffer.episode_starts[1:]
    next_non_terminal[-1] = 1.0 - dones.astype(np.float32)
    next_values = np.empty_like(buffer.values)
    next_values[:-1] = buffer.values[1:]
    next_values[-1] = last_values.cpu().numpy().flatten()
    deltas = buffer.rewards + buffer.gamma * next_values * next_non_terminal - buffer.values
    decays = buffer.gamma * buffer.gae_lambda * next_non_terminal
    advantage = np.zeros(buffer.n_envs, dtype=np.float32)
    for delta, decay, out in zip(deltas[::-1], decays[::-1], buffer.advantages[::-1], strict=True):
        advantage = np.add(delta, decay * advantage, out=out)
    buffer.returns = buffer.advantages + buffer.values
