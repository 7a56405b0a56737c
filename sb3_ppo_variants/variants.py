"""The three algorithms of the PPO paper: Algorithm 1 with three objectives, and with three ways to choose beta."""

from collections.abc import Mapping
from typing import Any, Literal

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_ppo_variants import arguments, checks
from sb3_ppo_variants.adaptive import adapt_kl_coef
from sb3_ppo_variants.objectives import clipped_surrogate, kl_penalized_surrogate
from sb3_ppo_variants.ppo import ProximalPolicyOptimization


class PPOClip(ProximalPolicyOptimization):
    """
    PPO with the clipped surrogate objective L^CLIP, equation (7) of https://arxiv.org/abs/1707.06347: section 3 of the paper.

    With ``compile=False`` it computes bit for bit what SB3's ``PPO`` computes. The arguments are those of that class,
    described in ``ProximalPolicyOptimization``, and

    :param clip_range: epsilon, a float or a schedule
    """

    objective = staticmethod(clipped_surrogate)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        checks.check_number("clip_range", self.clip_range, above=0, infinite=True, scheduled=True)


class KLPenaltyPPO(ProximalPolicyOptimization):
    """PPO with L^KLPEN, equation (8); with a ``clip_range``, its first term is L^CLIP. A subclass supplies beta."""

    objective = staticmethod(kl_penalized_surrogate)

    #: The current beta: that of the next policy update
    kl_coef: float

    def coefficients(self) -> dict[str, float]:
        """As in the base class, and beta as ``kl_coef``."""
        return {**super().coefficients(), "kl_coef": self.kl_coef}


class PPOFixedKL(KLPenaltyPPO):
    """
    PPO with the KL-penalized objective L^KLPEN, equation (8) of https://arxiv.org/abs/1707.06347, and a beta that does not
    depend on the KL: "fixed KL" in Table 1.

    The arguments are those of SB3's ``PPO``, described in ``ProximalPolicyOptimization``, and

    :param clip_range: epsilon, a float or a schedule, for a penalty "in addition to" the clipped surrogate (section 4);
        ``None`` for the unclipped surrogate
    :param kl_coef: beta, a float or a schedule. 0 gives L^CPI, equation (6): "no clipping or penalty" in Table 1
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = arguments.N_STEPS,
        batch_size: int = arguments.BATCH_SIZE,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule | None = None,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool | Literal["batch"] = True,
        ent_coef: float | Schedule = 0.0,
        vf_coef: float | Schedule = 0.5,
        max_grad_norm: float | None = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        kl_coef: float | Schedule = 3.0,
        compile: bool | Literal["auto"] = "auto",  # noqa: A002
        sequence_length: int | None = None,
    ) -> None:
        others = arguments.handed_on(locals(), "kl_coef")
        self.kl_coef = kl_coef
        super().__init__(**others)

    # `load` writes constructor arguments into __dict__, so the property keeps its value under its own name
    @property
    def kl_coef(self) -> float:
        """The current beta; a number or a schedule may be assigned."""
        return self._coefficient("kl_coef", minimum=0)

    @kl_coef.setter
    def kl_coef(self, kl_coef: float | Schedule) -> None:
        checks.check_number("kl_coef", kl_coef, minimum=0, scheduled=True)
        self.__dict__["kl_coef"] = kl_coef if callable(kl_coef) else float(kl_coef)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        checks.check_number("kl_coef", self.__dict__["kl_coef"], minimum=0, scheduled=True)


class PPOKLPen(KLPenaltyPPO):
    """
    PPO with the KL-penalized objective L^KLPEN, equation (8) of https://arxiv.org/abs/1707.06347, and a beta that is adapted
    after each policy update as in section 4, so that the KL of an update comes near a target: "adaptive KL" in Table 1.
    ``save`` and ``load`` keep beta, and the next ``learn`` goes on from it, unless ``load`` is given a ``kl_coef``.

    The arguments are those of SB3's ``PPO``, described in ``ProximalPolicyOptimization``, and

    :param clip_range: epsilon, a float or a schedule, for a penalty "in addition to" the clipped surrogate (section 4);
        ``None`` for the unclipped surrogate
    :param kl_target: d_targ in nats, a float or a schedule
    :param init_kl_coef: beta of the first update
    :param kl_coef_bounds: smallest and largest beta (not in the paper): as beta changes by a factor of 2 per update, it would
        take many updates to come back from far outside them
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = arguments.N_STEPS,
        batch_size: int = arguments.BATCH_SIZE,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule | None = None,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool | Literal["batch"] = True,
        ent_coef: float | Schedule = 0.0,
        vf_coef: float | Schedule = 0.5,
        max_grad_norm: float | None = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        kl_target: float | Schedule = 0.01,
        init_kl_coef: float = 1.0,
        kl_coef_bounds: tuple[float, float] = (1e-6, 1e6),
        compile: bool | Literal["auto"] = "auto",  # noqa: A002
        sequence_length: int | None = None,
    ) -> None:
        others = arguments.handed_on(locals(), "kl_target", "init_kl_coef", "kl_coef_bounds")
        self.kl_target = kl_target
        self.init_kl_coef = init_kl_coef
        self.kl_coef_bounds = kl_coef_bounds
        # Past the property, whose error would name kl_coef and not init_kl_coef, which is checked with the other arguments
        self.__dict__["kl_coef"] = init_kl_coef
        super().__init__(**others)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        checks.check_number("kl_target", self.kl_target, above=0, scheduled=True)
        try:
            low, high = self.kl_coef_bounds
        except (TypeError, ValueError):
            raise TypeError(f"kl_coef_bounds must be a pair of numbers, but is {self.kl_coef_bounds!r}") from None
        checks.check_number("kl_coef_bounds[0]", low, above=0)
        checks.check_number("kl_coef_bounds[1]", high, minimum=low)
        checks.check_number("init_kl_coef", self.init_kl_coef, above=0)
        if self._n_updates == 0:
            # Later, beta has gone on, and `load` may be given other bounds
            checks.check_number("init_kl_coef", self.init_kl_coef, minimum=low, maximum=high)
        checks.check_number("kl_coef", self.__dict__["kl_coef"], minimum=0)

    @property
    def kl_coef(self) -> float:
        """The current beta; a number within ``kl_coef_bounds`` may be assigned."""
        low, high = self.kl_coef_bounds
        # beta of a loaded model may be outside new bounds
        return min(max(float(self.__dict__["kl_coef"]), low), high)

    @kl_coef.setter
    def kl_coef(self, kl_coef: float) -> None:
        low, high = self.kl_coef_bounds
        checks.check_number("kl_coef", kl_coef, minimum=low, maximum=high)
        self.__dict__["kl_coef"] = float(kl_coef)

    def coefficients(self) -> dict[str, float]:
        """As in the base class, and d_targ as ``kl_target``."""
        return {**super().coefficients(), "kl_target": self._coefficient("kl_target", minimum=0)}

    def _after_update(self, kl: float | None, coef: Mapping[str, float]) -> None:
        super()._after_update(kl, coef)
        if kl is None:
            raise NotImplementedError("PPOKLPen adapts beta by KL[pi_old, pi], of which no closed form is known")
        self.kl_coef = adapt_kl_coef(self.kl_coef, kl, coef["kl_target"], self.kl_coef_bounds)
