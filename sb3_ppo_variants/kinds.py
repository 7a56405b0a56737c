"""What PPO asks of contrib's policies, which are given something besides the observation: action masks, a memory or both."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch as th
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from sb3_ppo_variants import masks
from sb3_ppo_variants.kl import ClosedForm, form_of_parts
from sb3_ppo_variants.lanes import lane
from sb3_ppo_variants.loss import Batch
from sb3_ppo_variants.policies import INVALID, FeedForward, Given, evaluation_mode, is_of_contrib, latents


def kind_of(policy: Any, sequence_length: int | None = None) -> FeedForward:
    """
    A policy as PPO sees it.

    :param policy: of any kind
    :param sequence_length: steps of the sequences that a policy with memory learns from; ``None``: as contrib cuts them
    """
    if isinstance(policy, RecurrentActorCriticPolicy):
        return Recurrent(policy, sequence_length)
    if isinstance(policy, MaskableActorCriticPolicy):
        return lane("masked", policy) or Masked(policy)  # type: ignore[arg-type]
    return lane("straight", policy) or FeedForward(policy)


class Masked(FeedForward):
    """contrib's ``MaskableActorCriticPolicy``, which is given action masks."""

    takes = ("action_masks",)

    def _closed_forms(self, chunks: list[tuple[PyTorchObs, Given]]) -> list[ClosedForm]:
        policy: Any = self.policy
        if not is_of_contrib(policy):
            return super()._closed_forms(chunks)
        forms = []
        with evaluation_mode(policy):
            for observations, given in chunks:
                logits = policy.action_net(latents(policy, observations)[0])
                parts = masked_log_probs(logits, given["action_masks"], masks.heads_of(policy.action_space))
                forms.append(form_of_parts(parts))
        return forms


def masked_log_probs(logits: th.Tensor, action_masks: th.Tensor, heads: tuple[int, ...]) -> list[th.Tensor]:
    """
    Log probabilities of all actions. Consecutive parts of an action that have equally many actions share a tensor, of shape
    ``(batch, n_parts, n_actions)``, and one masked log-softmax.
    """
    found = []
    start = 0
    for n_actions, parts in groupby(heads):
        stop = start + n_actions * len(list(parts))
        shape = len(logits), -1, n_actions
        mask = action_masks[:, start:stop].reshape(shape).bool()
        found.append(F.log_softmax(th.where(mask, logits[:, start:stop].reshape(shape), INVALID), dim=-1))
        start = stop
    return found


class Recurrent(FeedForward):
    """
    contrib's ``RecurrentActorCriticPolicy``, which is given the states of its LSTMs, where episodes start, and action
    masks, if it takes any.

    :param policy: the policy
    :param sequence_length: steps of the sequences that it learns from; ``None``: as contrib cuts them
    """

    # States before each step in a whole rollout, and at the starts of sequences in a minibatch
    takes = ("lstm_states", "episode_starts", "action_masks")

    def __init__(self, policy: Any, sequence_length: int | None = None) -> None:
        super().__init__(policy)
        self.sequence_length = sequence_length

    def minibatches(self, n_steps: int, n_envs: int, batch_size: int) -> Sequence[th.Tensor]:
        """As contrib, in the order of time from a random sample on; with a ``sequence_length``, sequences in random order."""
        order = th.arange(n_steps * n_envs)
        if self.sequence_length is None:
            order = order.roll(-np.random.randint(len(order)))
        else:
            order = order.view(-1, self.sequence_length)
            order = order[th.as_tensor(np.random.permutation(len(order)))].flatten()
        return order.to(self.policy.device).split(batch_size)

    def select(self, data: Batch, index: th.Tensor, n_steps: int) -> Batch:
        """A minibatch as contrib makes it: sequences, padded at their ends to the length of the longest."""
        starts, place, shape = self.sequences(data, index, n_steps)

        def padded(tensor: th.Tensor) -> th.Tensor:
            result = tensor.new_zeros((shape.numel(), *tensor.shape[1:]))
            result[place] = tensor[index]
            return result

        given = {**data.given}
        states = states_at(given.pop("lstm_states"), index[starts])
        data = data._replace(given=given, valid=th.ones_like(data.returns, dtype=th.bool))
        batch: Batch = pytree.tree_map(padded, data)
        return batch._replace(given={**batch.given, "lstm_states": states})

    def whole(self, data: Batch, n_steps: int) -> Batch:
        """One sequence per environment, or segment. Episodes may start within it, as no gradient goes through it."""
        firsts = th.arange(0, len(data.returns), self.sequence_length or n_steps, device=data.returns.device)
        return data._replace(given={**data.given, "lstm_states": states_at(data.given["lstm_states"], firsts)})

    def _distribution(self, observations: PyTorchObs, given: Given) -> Any:
        policy: Any = self.policy
        return policy.get_distribution(observations, **{**given, "lstm_states": given["lstm_states"].pi})[0]

    def _chunks(self, observations: PyTorchObs, given: Given) -> list[tuple[PyTorchObs, Given]]:
        return [(observations, given)]

    def _checked(self, batch: Batch) -> Batch:
        return batch

    def sequences(self, data: Batch, index: th.Tensor, n_steps: int) -> tuple[th.Tensor, th.Tensor, th.Size]:
        """
        The sequences of a minibatch.

        :return: positions of the samples that start a sequence; the place of each sample if all sequences, padded to the
            length of the longest, follow each other; the number of sequences, and that length
        """
        is_start = self.is_start(data.given["episode_starts"][index], index, n_steps)
        starts, sequence = is_start.nonzero().squeeze(1), is_start.cumsum(0) - 1
        step = th.arange(len(index), device=index.device) - starts[sequence]
        length = int(step.max()) + 1
        return starts, sequence * length + step, th.Size((len(starts), length))

    def is_start(self, episode_starts: th.Tensor, index: th.Tensor, n_steps: int) -> th.Tensor:
        """Which samples are the first of a sequence: of an episode, an environment, a segment, the minibatch."""
        is_first = th.arange(len(index), device=index.device) == 0
        return is_first | (episode_starts != 0) | (index % (self.sequence_length or n_steps) == 0)


def states_at(states: Any, index: th.Tensor) -> Any:
    """Some of the states of a rollout, of shape ``(n_samples, n_layers, size)``, as a policy takes them."""
    return pytree.tree_map(lambda tensor: tensor[index].swapaxes(0, 1).contiguous(), states)
