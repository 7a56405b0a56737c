"""Rollouts in NumPy of policies that see a vector and have an LSTM: contrib's numbers up to rounding, other random draws."""

from typing import Any

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_ppo_variants.buffers import STATES
from sb3_ppo_variants.compiled.numpy_policy import NumpyPolicy, has_stackable_layers
from sb3_ppo_variants.compiled.support import is_scannable
from sb3_ppo_variants.policies import NOTHING, Action, Given, Observations, has_contribs_memory


class NumpyMemory(NumpyPolicy):
    """
    A policy for one rollout, as ``NumpyPolicy``, with LSTMs before its networks. The states before each step are in the arrays
    of the buffer, which are those of this object, so that nothing has to be copied.
    """

    shares_input = False

    @staticmethod
    def supports(policy: Any) -> bool:
        """Whether a policy that sees a vector has contrib's memory, and layers that can be stacked."""
        return has_contribs_memory(policy) and is_scannable(policy) and has_stackable_layers(policy)

    def __init__(self, policy: Any, buffer: RolloutBuffer) -> None:
        super().__init__(policy, buffer)
        lstms = [lstm for lstm in (policy.lstm_actor, policy.lstm_critic) if lstm is not None]
        size, n_layers = policy.lstm_actor.hidden_size, policy.lstm_actor.num_layers
        # sigmoid(x) = tanh(x / 2) / 2 + 1 / 2: one function for all gates
        scale = th.full((4 * size,), 0.5)
        scale[2 * size : 3 * size] = 1
        self.scale = scale.numpy()
        # Weights (transposed) of the input and of the state, and biases, of all LSTMs side by side, by layer
        self.lstm_layers = []
        for layer in range(n_layers):
            weights = [_stacked(lstms, f"weight_{name}_l{layer}", scale[:, None]).mT.contiguous() for name in ("ih", "hh")]
            bias = th.zeros(len(lstms), 1, 4 * size)
            for name in ("ih", "hh") if policy.lstm_actor.bias else ():
                bias += _stacked(lstms, f"bias_{name}_l{layer}", scale)[:, None]
            self.lstm_layers.append([tensor.numpy() for tensor in (*weights, bias)])
        n_steps, n_envs = buffer.values.shape
        # Hidden states and cells before each step and after the last one
        self.hidden, self.cell = np.empty((2, n_steps + 1, n_layers, len(lstms), n_envs, size), dtype=np.float32)
        arrays = [array[:, :, i] for i in (0, len(lstms) - 1) for array in (self.hidden, self.cell)]
        for name, array in zip(STATES, arrays, strict=True):
            setattr(buffer, name, array[:-1])
        self.tensors = [th.from_numpy(array).unbind() for array in arrays]
        self.critic = None
        if policy.lstm_critic is None and not policy.shared_lstm:
            self.critic = policy.critic.weight.detach().t().numpy(), policy.critic.bias.detach().numpy()

    def _inputs(self, vector: np.ndarray, given: Given) -> np.ndarray:
        step = self.step
        if step == 0:
            for tensors, state in zip(self.tensors, (*given["lstm_states"].pi, *given["lstm_states"].vf), strict=True):
                tensors[0].copy_(state)
        goes_on = 1 - given["episode_starts"].numpy()[:, None]
        inputs = vector
        for layer, (weight, recurrent, bias) in enumerate(self.lstm_layers):
            gates = np.matmul(inputs, weight)
            gates += np.matmul(self.hidden[step, layer] * goes_on, recurrent)
            gates += bias
            np.tanh(gates, out=gates)
            gates *= self.scale
            gates += 1 - self.scale
            in_, forget, candidate, out = np.split(gates, 4, axis=-1)
            hidden, cell = self.hidden[step + 1, layer], self.cell[step + 1, layer]
            np.multiply(self.cell[step, layer], goes_on, out=cell)
            cell *= forget
            cell += in_ * candidate
            np.tanh(cell, out=hidden)
            hidden *= out
            inputs = hidden
        latents = [*inputs] if self.critic is None else [*inputs, vector @ self.critic[0] + self.critic[1]]
        return np.concatenate((latents[0], latents[-1]), axis=1)

    def act(self, observations: Observations, given: Given = NOTHING) -> Action:
        """As ``NumpyPolicy.act``, with the next states of the memory."""
        action = super().act(observations, given)
        hidden_pi, cell_pi, hidden_vf, cell_vf = (tensors[self.step] for tensors in self.tensors)
        return action._replace(lstm_states=RNNStates((hidden_pi, cell_pi), (hidden_vf, cell_vf)))


def _stacked(lstms: list[Any], name: str, scale: th.Tensor) -> th.Tensor:
    return th.stack([getattr(lstm, name).detach() * scale for lstm in lstms])
