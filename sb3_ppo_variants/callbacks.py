"""Callbacks for experiments like those of the paper."""

import torch as th
from stable_baselines3.common.callbacks import BaseCallback


class AnnealLogStd(BaseCallback):
    """
    Anneals the logarithm of the standard deviation of Gaussian actions linearly in the course of a training instead of
    learning it: "LinearAnneal(-0.7, -1.6)" in Table 4 of https://arxiv.org/abs/1707.06347.

    :param initial: its value at timestep 0
    :param final: its value after the last timestep; the value is set only at the start of each rollout
    :param verbose: as in every callback
    :raises ValueError: when the training starts, if the policy has no ``log_std``
    """

    def __init__(self, initial: float = -0.7, final: float = -1.6, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.initial = initial
        self.final = final

    def _init_callback(self) -> None:
        log_std = getattr(self.model.policy, "log_std", None)
        if not isinstance(log_std, th.nn.Parameter):
            raise ValueError("AnnealLogStd needs a policy with Gaussian actions, that is with a log_std")
        self.log_std = log_std
        self.is_learned = log_std.requires_grad
        # Until the training ends; if it fails, `learn` of this package's algorithms puts it back
        log_std.requires_grad_(False)

    def _on_rollout_start(self) -> None:
        # In the first rollout, the model's own progress is still that of the training before
        progress = 1 - self.model.num_timesteps / self.model._total_timesteps
        self.log_std.data.fill_(self.final + (self.initial - self.final) * max(progress, 0.0))

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.log_std.requires_grad_(self.is_learned)
