"""Policies with memory: contrib's, as GRU too, and with action masks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import MaskableDistribution, MaybeMasks, make_masked_proba_distribution
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.distributions import MultiCategoricalDistribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_ppo_variants.masks import heads_of

States = tuple[th.Tensor, th.Tensor]


class GRU(nn.GRU):
    """A GRU with an LSTM's pair of states, as contrib's policies and buffers have it. The cell is handed through."""

    def forward(self, features: th.Tensor, states: States) -> tuple[th.Tensor, States]:  # type: ignore[override]
        """
        :param features: shape ``(n_steps, n_sequences, input_size)``
        :param states: hidden and cell, each of shape ``(n_layers, n_sequences, hidden_size)``
        :return: the outputs, and the new pair
        """
        hidden, cell = states
        output, hidden = super().forward(features, hidden)
        return output, (hidden, cell)


class MlpLstmPolicy(RecurrentActorCriticPolicy):
    """
    contrib's policy with memory. Its arguments are those of ``RecurrentActorCriticPolicy``, and

    :param recurrent_layer_type: ``"lstm"`` or ``"gru"``. ``lstm_hidden_size``, ``n_lstm_layers``, ``shared_lstm``,
        ``enable_critic_lstm`` and ``lstm_kwargs`` hold for both.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *args: Any,
        recurrent_layer_type: Literal["lstm", "gru"] = "lstm",
        **kwargs: Any,
    ) -> None:
        if recurrent_layer_type not in ("lstm", "gru"):
            raise ValueError(f"recurrent_layer_type must be 'lstm' or 'gru', but is {recurrent_layer_type!r}")
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)
        self.recurrent_layer_type = recurrent_layer_type
        if recurrent_layer_type == "gru":
            for name in ("lstm_actor", "lstm_critic"):
                lstm = getattr(self, name)
                if lstm is not None:
                    setattr(self, name, GRU(lstm.input_size, lstm.hidden_size, lstm.num_layers, **self.lstm_kwargs))
            # contrib's optimizer has the parameters of the LSTMs
            options = {"lr": lr_schedule(1), **self.optimizer_kwargs}
            self.optimizer = self.optimizer_class(self.parameters(), **options)

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """SB3's, with an ``int`` as ``features_dim``: with MultiDiscrete observations it is NumPy's, which torch refuses."""
        extractor = super().make_features_extractor()
        extractor._features_dim = int(extractor.features_dim)
        return extractor

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """What ``load`` makes the policy with: with the arguments that SB3's and contrib's leave out."""
        return {
            **super()._get_constructor_parameters(),
            "share_features_extractor": self.share_features_extractor,
            "lstm_hidden_size": self.lstm_output_dim,
            "n_lstm_layers": self.lstm_actor.num_layers,
            "shared_lstm": self.shared_lstm,
            "enable_critic_lstm": self.enable_critic_lstm,
            "lstm_kwargs": self.lstm_kwargs,
            "recurrent_layer_type": self.recurrent_layer_type,
        }


class CnnLstmPolicy(MlpLstmPolicy, RecurrentActorCriticCnnPolicy):
    """As ``MlpLstmPolicy``, for images."""


class MultiInputLstmPolicy(MlpLstmPolicy, RecurrentMultiInputActorCriticPolicy):
    """As ``MlpLstmPolicy``, for Dict observations."""


class MaskableMlpLstmPolicy(MlpLstmPolicy):
    """
    A policy with memory and action masks, which are the last argument of its methods: one truth value for each action, in the
    order of ``sb3_ppo_variants.masks.heads_of``; ``None`` if all actions are possible. The arguments are those of
    ``MlpLstmPolicy``.
    """

    action_dist: MaskableDistribution
    # Those of the call that is being made, as contrib's methods do not hand them on
    _action_masks: MaybeMasks = None

    def _build(self, lr_schedule: Schedule) -> None:
        # SB3's _build knows no masked distributions: it makes the last layer for this one, which needs the same layer
        self.action_dist = MultiCategoricalDistribution(list(heads_of(self.action_space)))  # type: ignore[assignment]
        super()._build(lr_schedule)
        self.action_dist = make_masked_proba_distribution(self.action_space)

    @contextmanager
    def _masked_by(self, action_masks: MaybeMasks) -> Iterator[None]:
        self._action_masks = action_masks
        try:
            yield
        finally:
            self._action_masks = None

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> MaskableDistribution:
        distribution: MaskableDistribution = self.action_dist.proba_distribution(action_logits=self.action_net(latent_pi))
        if self._action_masks is not None:
            distribution.apply_masking(self._action_masks)
        return distribution

    def forward(  # type: ignore[override]
        self,
        obs: th.Tensor,
        lstm_states: RNNStates,
        episode_starts: th.Tensor,
        deterministic: bool = False,
        action_masks: MaybeMasks = None,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor, RNNStates]:
        """
        :param obs: observations
        :param lstm_states: those of actor and critic before
        :param episode_starts: 1 where an observation is the first of an episode, so that the states are zeroed
        :param deterministic: whether to take the likeliest actions
        :param action_masks: which actions are possible
        :return: actions, values, log probabilities, and the states afterwards
        """
        with self._masked_by(action_masks):
            return super().forward(obs, lstm_states, episode_starts, deterministic)

    def evaluate_actions(  # type: ignore[override]
        self,
        obs: th.Tensor,
        actions: th.Tensor,
        lstm_states: RNNStates,
        episode_starts: th.Tensor,
        action_masks: MaybeMasks = None,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param obs: observations, one sequence after the other
        :param actions: those that were taken
        :param lstm_states: those of actor and critic before each sequence
        :param episode_starts: 1 where an observation is the first of an episode
        :param action_masks: which actions were possible
        :return: values, log probabilities and entropies
        """
        with self._masked_by(action_masks):
            return super().evaluate_actions(obs, actions, lstm_states, episode_starts)

    def get_distribution(  # type: ignore[override]
        self, obs: th.Tensor, lstm_states: States, episode_starts: th.Tensor, action_masks: MaybeMasks = None
    ) -> tuple[MaskableDistribution, tuple[th.Tensor, ...]]:
        """
        :param obs: observations
        :param lstm_states: those of the actor before
        :param episode_starts: 1 where an observation is the first of an episode
        :param action_masks: which actions are possible
        :return: the distribution of the actions, and the states afterwards
        """
        # `predict` calls this without masks: its own have been applied already
        _, states = super().get_distribution(obs, lstm_states, episode_starts)
        if action_masks is not None:
            self.action_dist.apply_masking(action_masks)
        return self.action_dist, states

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        :param observation: one observation, or those of several environments
        :param state: what the last call returned; ``None`` at the beginning of episodes
        :param episode_start: where episodes begin
        :param deterministic: whether to take the likeliest actions
        :param action_masks: which actions are possible
        :return: the actions, and the next state
        :raises ValueError: if there is no state in the middle of an episode
        """
        if state is None and episode_start is not None and not np.all(episode_start):
            raise ValueError(
                "state is None in the middle of an episode: the policy would forget what it has seen. contrib's maskable "
                "evaluate_policy never hands states on; sb3_ppo_variants.evaluate_policy does"
            )
        with self._masked_by(action_masks):
            return super().predict(observation, state, episode_start, deterministic)


class MaskableCnnLstmPolicy(MaskableMlpLstmPolicy, CnnLstmPolicy):
    """As ``MaskableMlpLstmPolicy``, for images."""


class MaskableMultiInputLstmPolicy(MaskableMlpLstmPolicy, MultiInputLstmPolicy):
    """As ``MaskableMlpLstmPolicy``, for Dict observations."""


def takes_masks(policy_class: type) -> bool:
    """Whether a class of policies takes masks: contrib's, or those with memory."""
    return issubclass(policy_class, MaskableActorCriticPolicy | MaskableMlpLstmPolicy)


# By the names that they have
POLICIES: dict[str, type[BasePolicy]] = {
    policy.__name__: policy
    for policy in (
        MlpLstmPolicy,
        CnnLstmPolicy,
        MultiInputLstmPolicy,
        MaskableMlpLstmPolicy,
        MaskableCnnLstmPolicy,
        MaskableMultiInputLstmPolicy,
    )
}
