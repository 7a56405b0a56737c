"""SB3's A2C and contrib's TRPO with the rollouts of this package: the same numbers bit for bit, faster."""

from typing import Any

import sb3_contrib
import stable_baselines3
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_ppo_variants import rollout
from sb3_ppo_variants.kinds import kind_of
from sb3_ppo_variants.policies import FeedForward


class QuickRollouts:
    """A base class that comes before one of SB3's on-policy algorithms, whose policy has neither masks nor memory."""

    policy: Any
    _masks: Any = None
    _last_action_masks: Any = None
    _last_lstm_states: Any = None

    collect_rollouts = rollout.collect_rollouts

    def _acting(self, rollout_buffer: RolloutBuffer) -> FeedForward:
        return kind_of(self.policy)


class A2C(QuickRollouts, stable_baselines3.A2C):
    """SB3's ``A2C``."""


class TRPO(QuickRollouts, sb3_contrib.TRPO):
    """contrib's ``TRPO``."""
