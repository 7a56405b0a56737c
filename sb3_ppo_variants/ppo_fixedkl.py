"""PPO with a KL penalty of constant weight: section 4 of the paper."""

from typing import Any, Literal

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_ppo_variants import checks
from sb3_ppo_variants.kl_penalty import KLPenaltyPPO


class PPOFixedKL(KLPenaltyPPO):
    """
    PPO with the KL-penalized objective L^KLPEN, equation (8) of https://arxiv.org/abs/1707.06347, and a beta that does not
    depend on the KL: "fixed KL" in Table 1.

    The arguments are those of SB3's ``PPO``, described in ``ProximalPolicyOptimization``, and

    :param clip_range: epsilon of the clipped surrogate "in addition to" the penalty, a float or a schedule; ``None`` for
        the unclipped one
    :param target_kl: end an update when the approximate KL of a minibatch exceeds 1.5 times this, in nats (not in the
        paper); ``None`` for never
    :param kl_coef: beta, a float or a schedule. 0 gives L^CPI, equation (6): "no clipping or penalty" in Table 1
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
    ) -> None:
        # Under the name of the property, as `load` writes constructor arguments into __dict__
        self.kl_coef = kl_coef
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

    @property
    def kl_coef(self) -> float:
        """The current beta; a number or a schedule may be assigned."""
        return self._coefficient("kl_coef", minimum=0)

    @kl_coef.setter
    def kl_coef(self, kl_coef: float | Schedule) -> None:
        checks.check_coefficient("kl_coef", kl_coef, minimum=0)
        self.__dict__["kl_coef"] = kl_coef if callable(kl_coef) else float(kl_coef)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        checks.check_coefficient("kl_coef", self.__dict__["kl_coef"], minimum=0)
        checks.check_number("target_kl", self.target_kl, above=0, optional=True, infinite=True)
