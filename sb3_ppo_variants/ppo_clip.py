"""PPO with the clipped surrogate objective: section 3 of the paper."""

from collections.abc import Mapping
from typing import Any, Literal

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_ppo_variants import checks
from sb3_ppo_variants.loss import SurrogateTerms
from sb3_ppo_variants.objectives import Coefficient, clipped_surrogate
from sb3_ppo_variants.proximal import ProximalPolicyOptimization


class PPOClip(ProximalPolicyOptimization):
    """
    PPO with the clipped surrogate objective L^CLIP, equation (7) of https://arxiv.org/abs/1707.06347.

    With ``compile=False`` it computes bit for bit what SB3's ``PPO`` computes. The arguments are those of SB3's ``PPO``,
    described in ``ProximalPolicyOptimization``, and

    :param clip_range: epsilon, a float or a schedule
    :param target_kl: end an update when the approximate KL of a minibatch exceeds 1.5 times this, in nats (not in the
        paper); ``None`` for never
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
        clip_range: float | Schedule = 0.2,
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
        compile: bool | Literal["auto"] = "auto",  # noqa: A002
    ) -> None:
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
        checks.check_coefficient("clip_range", self.clip_range, above=0, infinite=True)
        checks.check_number("target_kl", self.target_kl, above=0, optional=True, infinite=True)

    def surrogate(self, terms: SurrogateTerms, coef: Mapping[str, Coefficient]) -> th.Tensor:
        """L^CLIP, equation (7)."""
        return clipped_surrogate(terms.ratio, terms.advantages, coef["clip_range"])
