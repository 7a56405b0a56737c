"""PPO with an adaptive KL penalty: section 4 of the paper."""

from collections.abc import Mapping
from typing import Any, Literal

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_ppo_variants import checks
from sb3_ppo_variants.kl import adapt_kl_coef
from sb3_ppo_variants.kl_penalty import KLPenaltyPPO


class PPOKLPen(KLPenaltyPPO):
    """
    PPO with the KL-penalized objective L^KLPEN, equation (8) of https://arxiv.org/abs/1707.06347, and the beta that section
    4 adapts after each policy update, so that the KL of an update comes near a target: "adaptive KL" in Table 1.

    beta belongs to the state of the training: it survives ``save`` and ``load`` and goes on in the next ``learn``, unless
    ``load`` is given a ``kl_coef``.

    The arguments are those of SB3's ``PPO``, described in ``ProximalPolicyOptimization``, and

    :param clip_range: epsilon of the clipped surrogate "in addition to" the penalty, a float or a schedule; ``None`` for
        the unclipped one
    :param target_kl: d_targ in nats, a float or a schedule; unlike in SB3's ``PPO``, an update never ends early
    :param init_kl_coef: beta of the first update
    :param kl_coef_bounds: smallest and largest beta (not in the paper): beta changes by a factor of 2 in an update, so that it
        would take many updates to come back from far beyond
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
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
        target_kl: float | Schedule = 0.01,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        init_kl_coef: float = 1.0,
        kl_coef_bounds: tuple[float, float] = (1e-6, 1e6),
        compile: bool | Literal["auto"] = "auto",  # noqa: A002
    ) -> None:
        self.init_kl_coef = init_kl_coef
        self.kl_coef_bounds = kl_coef_bounds
        # Past the property, whose error would name kl_coef and not init_kl_coef, which is checked with the other arguments
        self.__dict__["kl_coef"] = init_kl_coef
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            normalize_advantage=normalize_advantage,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
            compile=compile,
        )

    def _check_arguments(self) -> None:
        super()._check_arguments()
        checks.check_coefficient("target_kl", self.target_kl, above=0)
        try:
            low, high = self.kl_coef_bounds
        except (TypeError, ValueError):
            raise TypeError(f"kl_coef_bounds must be a pair of numbers, but is {self.kl_coef_bounds!r}") from None
        checks.check_number("kl_coef_bounds[0]", low, above=0)
        checks.check_number("kl_coef_bounds[1]", high, minimum=low)
        checks.check_number("init_kl_coef", self.init_kl_coef, minimum=low, maximum=high)
        checks.check_number("kl_coef", self.__dict__["kl_coef"], minimum=0)

    @property
    def kl_coef(self) -> float:
        """The current beta; a number within ``kl_coef_bounds`` may be assigned."""
        low, high = self.kl_coef_bounds
        # That of a loaded model may be outside new bounds
        return min(max(float(self.__dict__["kl_coef"]), low), high)

    @kl_coef.setter
    def kl_coef(self, kl_coef: float) -> None:
        low, high = self.kl_coef_bounds
        checks.check_number("kl_coef", kl_coef, minimum=low, maximum=high)
        self.__dict__["kl_coef"] = float(kl_coef)

    def coefficients(self) -> dict[str, float]:
        """As in the base class, and d_targ as ``kl_target``."""
        return {**super().coefficients(), "kl_target": self._coefficient("target_kl", minimum=0)}

    def _max_approx_kl(self) -> float | None:
        return None

    def _after_update(self, kl: float, coef: Mapping[str, float]) -> None:
        self.kl_coef = adapt_kl_coef(self.kl_coef, kl, coef["kl_target"], self.kl_coef_bounds)
