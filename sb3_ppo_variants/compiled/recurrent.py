"""
Quick updates of policies with memory. contrib calls its LSTM once for each step as soon as an episode starts in a minibatch;
but sequences are cut there, so that only the first step of a sequence can be a start.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from sb3_ppo_variants.kinds import Recurrent, states_at
from sb3_ppo_variants.kl import closed_form
from sb3_ppo_variants.loss import Batch, Evaluation
from sb3_ppo_variants.policies import NOTHING, FeedForward, Given
from sb3_ppo_variants.recurrent_policies import GRU


class OneCall(Recurrent):
    """
    The numbers of ``RecurrentActorCriticPolicy`` up to rounding: all steps of all sequences of a minibatch by one call of
    ``nn.LSTM``, or of a GRU.
    """

    def select(self, data: Batch, index: th.Tensor, n_steps: int) -> Batch:
        """A minibatch of real samples only, with the states at the start of its sequences, which ``remembered`` pads."""
        starts, place, (n_sequences, length) = self.sequences(data, index, n_steps)
        # Where the samples lie among sequences side by side, and the shape of these
        side_by_side = place % length * n_sequences + place // length, (length, n_sequences)
        return _with_states(data, index, starts, partial(_remembered_padded, *side_by_side))

    def whole(self, data: Batch, n_steps: int) -> Batch:
        """All of the rollout as one minibatch, in which one sequence may be much longer than the others."""
        index = th.arange(len(data.returns), device=data.returns.device)
        starts, place, (n_sequences, length) = self.sequences(data, index, n_steps)
        takes_packed = type(self.policy.lstm_actor) in (nn.LSTM, GRU)
        if not takes_packed or n_sequences * length <= 2 * len(index):
            # A memory of the user's may take tensors only; and where little is padding, packing is slower
            return self.select(data, index, n_steps)
        sequence, step = place // length, place % length
        longest_first = sequence.bincount().argsort(descending=True)
        order = (step * n_sequences + longest_first.argsort()[sequence]).argsort()
        return _with_states(data, index, starts[longest_first], partial(_remembered_packed, order, step.bincount().cpu()))

    def remembered(self, lstm: Any, features: th.Tensor, states: tuple[th.Tensor, th.Tensor], given: Given) -> th.Tensor:
        """The outputs of a memory for the samples of a minibatch, of shape ``(batch, size)``."""
        outputs: th.Tensor = given["sequences"](lstm, features, states)
        return outputs

    def evaluate(self, batch: Batch) -> Evaluation:
        """``policy.evaluate_actions``, and what the KL of its distributions is made of."""
        policy: Any = self.policy
        features = policy.extract_features(batch.observations)
        pi, vf = (features, features) if policy.share_features_extractor else features
        given, states = batch.given, batch.given["lstm_states"]
        latent_pi = self.remembered(policy.lstm_actor, pi, states.pi, given)
        if policy.lstm_critic is not None:
            latent_vf = self.remembered(policy.lstm_critic, vf, states.vf, given)
        else:
            latent_vf = latent_pi.detach() if policy.shared_lstm else policy.critic(vf)
        distribution = self._from_latent(latent_pi, given)
        values = policy.value_net(policy.mlp_extractor.forward_critic(latent_vf)).flatten()
        log_prob, entropy = distribution.log_prob(batch.actions), distribution.entropy()
        return Evaluation(values, log_prob, entropy, lambda: closed_form(distribution))

    def _distribution(self, observations: PyTorchObs, given: Given) -> Any:
        policy: Any = self.policy
        # Features have no memory, so that those of images need not be made at once
        chunks = FeedForward._chunks(self, observations, NOTHING)
        features = [policy.extract_features(chunk) for chunk, _ in chunks]
        pi = th.cat(features if policy.share_features_extractor else [of_pi for of_pi, _ in features])
        return self._from_latent(self.remembered(policy.lstm_actor, pi, given["lstm_states"].pi, given), given)

    def _from_latent(self, latent_pi: th.Tensor, given: Given) -> Any:
        policy: Any = self.policy
        distribution = policy._get_action_dist_from_latent(policy.mlp_extractor.forward_actor(latent_pi))
        if "action_masks" in given:
            distribution.apply_masking(given["action_masks"])
        return distribution


def _with_states(data: Batch, index: th.Tensor, starts: th.Tensor, sequences: Callable[..., th.Tensor]) -> Batch:
    """Some samples, with the states at ``starts``, and the function that calls a memory with these sequences."""
    given = {**data.given}
    states, episode_starts = given.pop("lstm_states"), given.pop("episode_starts")
    first = index[starts]
    goes_on = 1 - episode_starts[first][:, None]
    states = pytree.tree_map(lambda state: state * goes_on, states_at(states, first))
    batch = data._replace(given=given).select(index)
    return batch._replace(given={**batch.given, "lstm_states": states, "sequences": sequences})


def _remembered_padded(place: th.Tensor, shape: tuple[int, int], lstm: Any, features: th.Tensor, states: Any) -> th.Tensor:
    padded = features.new_zeros((shape[0] * shape[1], features.shape[1])).index_copy(0, place, features)
    outputs, _ = lstm(padded.view(*shape, -1), states)
    return outputs.flatten(0, 1).index_select(0, place)


def _remembered_packed(order: th.Tensor, batch_sizes: th.Tensor, lstm: Any, features: th.Tensor, states: Any) -> th.Tensor:
    """The same without padding. With derivatives, it is slower than padding."""
    outputs = lstm(PackedSequence(features[order], batch_sizes), states)[0].data
    return th.empty_like(outputs).index_copy(0, order, outputs)


class Scanned(OneCall):
    """The same by an operator that can be compiled, and needs no padding."""

    def select(self, data: Batch, index: th.Tensor, n_steps: int) -> Batch:
        """A minibatch, with the states before each step; where an episode starts, they are 0."""
        batch = data.select(index)
        given = {**batch.given}
        episode_starts = given.pop("episode_starts")
        goes_on = 1 - episode_starts[:, None, None]
        states = pytree.tree_map(lambda state: state * goes_on, given.pop("lstm_states"))
        is_start = self.is_start(episode_starts, index, n_steps)
        return batch._replace(given={**given, "lstm_states": states, "is_start": is_start})

    def remembered(self, lstm: Any, features: th.Tensor, states: tuple[th.Tensor, th.Tensor], given: Given) -> th.Tensor:
        """As ``OneCall.remembered``."""
        # Torch before 2.4 lacks what it is made of
        from sb3_ppo_variants.compiled.lstm import remember

        return remember(lstm, features, states, given["is_start"])
