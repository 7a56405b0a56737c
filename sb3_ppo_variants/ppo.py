"""
Algorithm 1 of the PPO paper on Stable-Baselines3's ``OnPolicyAlgorithm``: what the variants share.

==========================================================  ===================================================
for iteration = 1, 2, ... do                                SB3's ``OnPolicyAlgorithm.learn``
  for actor = 1, 2, ..., N do                               the environments of its vec-envs
    Run policy pi_old in environment for T timesteps        ``collect_rollouts``, in rollout.py
    Compute advantage estimates A_1, ..., A_T               at its end
  end for
  Optimize surrogate L with respect to theta,               ``train``: ``ppo_loss`` in loss.py is L,
    with K epochs and minibatch size M <= N T               objectives.py has its surrogates
  theta_old <- theta                                        ``Rollout``, at the beginning of ``train``
end for
==========================================================  ===================================================
"""

import importlib
import importlib.util
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, BasePolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, explained_variance
from torch.nn import functional as F

from sb3_ppo_variants import arguments, checks, contrib, recurrent_policies, rollout, saving
from sb3_ppo_variants.adaptive import AdaptiveLearningRate
from sb3_ppo_variants.kinds import kind_of
from sb3_ppo_variants.lanes import lane
from sb3_ppo_variants.loss import APPROX_KL, METRICS, Settings, ppo_loss
from sb3_ppo_variants.masks import POLICIES, Masks
from sb3_ppo_variants.objectives import WITHOUT_KL, Objective
from sb3_ppo_variants.optimizer import Step
from sb3_ppo_variants.policies import FeedForward
from sb3_ppo_variants.rollout import Rollout
from sb3_ppo_variants.transaction import kept_trainable, transaction

SelfProximal = TypeVar("SelfProximal", bound="ProximalPolicyOptimization")


class ProximalPolicyOptimization(OnPolicyAlgorithm):
    """
    Proximal policy optimization, Algorithm 1 of https://arxiv.org/abs/1707.06347. A subclass supplies the surrogate objective
    L^S as ``objective``. The loss that is minimised is equation (9) with its sign reversed::

        - L^S + vf_coef L^VF - ent_coef S

    :param policy: the policy to use: MlpPolicy, CnnPolicy, ...; with action masks MaskableMlpPolicy, ...; with a memory
        MlpLstmPolicy, ...; with both MaskableMlpLstmPolicy, ...
    :param env: the environment to learn from (if registered in Gymnasium, can be str)
    :param learning_rate: Adam's step size; a float, a schedule (a function of the remaining progress, from 1 to 0), or an
        ``AdaptiveLearningRate``
    :param n_steps: T, the number of steps per environment and update; 2048 by default, and with a memory 128, as contrib
    :param batch_size: M, the minibatch size; 64 by default, and with a memory 128, as contrib
    :param n_epochs: K, the number of passes over the rollout per update
    :param gamma: discount factor, equation (12)
    :param gae_lambda: lambda of the truncated generalized advantage estimator, equations (11) and (12)
    :param clip_range: epsilon of equation (7), a float or a schedule; ``None`` for no clipping, where the class allows it
    :param clip_range_vf: how far from the old value the new one may lie before it is clipped in the value loss, a float or a
        schedule, in units of the return (not in the paper); ``None`` for no such clipping
    :param normalize_advantage: ``True``: shift and scale the advantages to mean 0 and standard deviation 1 in each
        minibatch; ``"batch"``: once in each rollout, as the paper's authors' code; ``False``: not at all
    :param ent_coef: c2 of equation (9), a float or a schedule
    :param vf_coef: c1 of equation (9), a float or a schedule
    :param max_grad_norm: largest norm of the gradient (not in the paper); ``None`` for no clipping of the gradient
    :param use_sde: whether to use generalized State Dependent Exploration (gSDE)
    :param sde_sample_freq: sample a new noise matrix every n steps when using gSDE; -1: only at the start of a rollout
    :param rollout_buffer_class: rollout buffer class to use; ``None``: chosen by the observation space
    :param rollout_buffer_kwargs: keyword arguments for the rollout buffer
    :param target_kl: end an update when the approximate KL of a minibatch exceeds 1.5 times this, in nats (not in the
        paper); ``None`` for never
    :param stats_window_size: number of episodes over which the logged success rate, length and reward are averaged
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments for the policy
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: seed of the pseudo random generators
    :param device: device (cpu, cuda, ...) on which the code should run; "auto" for the GPU if possible
    :param _init_setup_model: whether to build the network at the creation of the instance
    :param compile: ``True``: compile the minibatch step (needs a C++ compiler); rollouts draw other random numbers than SB3's.
        ``False``: compute what SB3 computes, bit for bit. ``"auto"``: as ``True`` if the training is long enough to pay for
        compiling and nothing prevents it (``verbose=1`` says why not), else as ``False``, but with a memory never bit for bit
    :param sequence_length: number of steps of the sequences through which a policy with memory backpropagates; minibatches
        consist of such sequences in random order. ``None``: as in contrib's ``RecurrentPPO``, in the order of time
    :raises ValueError: if an argument is out of range, or the action space is not supported
    :raises TypeError: if an argument is of the wrong type
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
        **POLICIES,
        **recurrent_policies.POLICIES,
    }
    #: L^S per sample, to be maximised: a static function of ``(terms, coef)`` and of nothing else. It defines the variant
    objective: Objective

    # The compiling backend belongs to the process that trains, not to the model
    _backend: Any = None
    _uses_compiled: bool = False

    # The source of the action masks in this training, if the policy takes any, and what is known of the coming step's masks
    _masks: Masks | None = None
    _last_action_masks: Any = None
    # True for models saved by MaskablePPO, whose policies see the whole observation, the mask included
    _mask_is_feature: bool = False
    # The memory of the policy, if it has any: its states before the coming step, as in contrib's RecurrentPPO
    _last_lstm_states: Any = None

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
        clip_range: float | Schedule | None = 0.2,
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
        sequence_length: int | None = None,
    ) -> None:
        own = ("batch_size", "n_epochs", "clip_range", "clip_range_vf", "normalize_advantage", "target_kl")
        others = arguments.handed_on(locals(), *own, "own", "compile", "sequence_length", "_init_setup_model")
        action_spaces = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
        with arguments.as_errors("env"):
            super().__init__(**others, _init_setup_model=False, supported_action_spaces=action_spaces)
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.clip_range = clip_range
        self.clip_range_vf = clip_range_vf
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.compile = compile
        self.sequence_length = sequence_length
        #: The current step size if ``learning_rate`` is an ``AdaptiveLearningRate``
        self.adapted_learning_rate: float | None = None

        if _init_setup_model:
            self._setup_model()
            if self.env is not None:
                arguments.check_rollout_size(self)
                arguments.warn_of_truncated_minibatches(self, ProximalPolicyOptimization)

    def _setup_model(self) -> None:
        self._check_arguments()
        with arguments.as_errors("The policy or the rollout buffer cannot be built"):
            if issubclass(self.policy_class, MaskableActorCriticPolicy | RecurrentActorCriticPolicy):
                contrib.set_up(self)
            else:
                super()._setup_model()
        for name in ("clip_range", "clip_range_vf"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, FloatSchedule(value if callable(value) else float(value)))

    _check_arguments = arguments.check_arguments

    def _setup_lr_schedule(self) -> None:
        super()._setup_lr_schedule()
        if isinstance(self.learning_rate, AdaptiveLearningRate):
            present = self.adapted_learning_rate or self.learning_rate.initial
            self.adapted_learning_rate = self.learning_rate.within_bounds(present)
            self.lr_schedule = FloatSchedule(self.adapted_learning_rate)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_backend", "_uses_compiled", "_masks", "_last_lstm_states"]

    def __getstate__(self) -> dict[str, Any]:
        # Neither compiled functions can be pickled, nor methods of environments
        return {**self.__dict__, "_backend": None, "_uses_compiled": False, "_masks": None}

    def coefficients(self) -> dict[str, float]:
        """The coefficients of the loss in the coming update, by name; without clip ranges of ``None``: no such clipping."""
        coef = {"ent_coef": self._coefficient("ent_coef"), "vf_coef": self._coefficient("vf_coef", minimum=0)}
        for name in ("clip_range", "clip_range_vf"):
            if getattr(self, name) is not None:
                coef[name] = self._coefficient(name, self._scheduled_minimum(), infinite=True, overshoots=True)
        return coef

    def _coefficient(self, name: str, minimum: float = -math.inf, infinite: bool = False, overshoots: bool = False) -> float:
        """
        The present value of a coefficient that is a float or a schedule. The last rollout may go beyond the total timesteps:
        schedules that SB3 has, too (``overshoots``), are then called with a remaining progress below 0, others with 0.
        """
        # kl_coef is a property that calls this
        value = self.__dict__[name] if name in self.__dict__ else getattr(self, name)
        if callable(value):
            progress = self._current_progress_remaining
            return checks.scheduled_value(name, value, progress if overshoots else max(progress, 0.0), minimum, infinite)
        # Checked again, as it may have been assigned since
        checks.check_number(name, float(value), minimum=minimum, infinite=infinite)
        return float(value)

    def _scheduled_minimum(self) -> float:
        """Lower bound of learning rate and clip ranges: 0, or none if the progress, and so a linear schedule, is negative."""
        return 0.0 if self._current_progress_remaining >= 0 else -math.inf

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        super()._update_learning_rate(optimizers)
        where = f"learning_rate (at remaining progress {self._current_progress_remaining:g})"
        for group in self.policy.optimizer.param_groups:
            checks.check_number(where, float(group["lr"]), minimum=self._scheduled_minimum())

    predict = contrib.predict

    # Run pi_old for T timesteps, and estimate advantages
    collect_rollouts = rollout.collect_rollouts

    def _acting(self, rollout_buffer: RolloutBuffer) -> FeedForward:
        """The policy of the coming rollout."""
        return (self._backend and self._backend.acting(self.policy, rollout_buffer)) or self._kind()

    def _kind(self) -> FeedForward:
        """The policy as an update sees it."""
        inputs = self.policy, self.rollout_buffer, self.sequence_length
        return (self._backend and self._backend.kind(*inputs)) or kind_of(self.policy, self.sequence_length)

    def train(self) -> None:
        """
        Optimize the surrogate objective on the current rollout: the last two lines of Algorithm 1's loop.

        :raises NonFiniteUpdateError: (a ``FloatingPointError``) if the update makes a parameter or a loss NaN or infinite.
            Parameters, optimizer and counters are then as they were before the update, as after any error in it.
        """
        with transaction(self) as before:
            self._update_learning_rate(self.policy.optimizer)
            coef = self.coefficients()
            # theta_old <- theta
            old = Rollout(self.rollout_buffer, self._kind(), self.normalize_advantage == "batch", self._needs_kl())
            self.policy.set_training_mode(True)
            epochs = self._optimize(old, coef)
            kl = old.mean_kl()
            # The KL is part of the loss where it has a weight
            before.check(self, epochs, kl if coef.get("kl_coef", 0) > 0 else None)
        self._record(epochs, coef, kl)
        self._after_update(kl, coef)

    def _needs_kl(self) -> bool:
        """Whether to compute the KL of all samples: it is used, or costs next to nothing. If not, that of some is logged."""
        is_used = self.objective not in WITHOUT_KL or isinstance(self.learning_rate, AdaptiveLearningRate)
        return is_used or rollout.has_cheap_kl(self.observation_space, self.action_space)

    def _optimize(self, old: Rollout, coef: Mapping[str, float]) -> list[th.Tensor]:
        """
        Make K epochs of minibatch steps, or fewer if the approximate KL of a minibatch exceeds the limit. Return, per epoch,
        ``METRICS`` and the norm of the gradient at each step. Where the update ends early, the last norm is NaN.
        """
        max_approx_kl = math.inf if self.target_kl is None else 1.5 * self.target_kl
        batch_size, normalizes_minibatch = int(self.batch_size), self.normalize_advantage is True
        if self._uses_compiled:
            limits = (self.max_grad_norm, max_approx_kl)
            settings = Settings(self.objective, coef, normalizes_minibatch, self.n_epochs, batch_size, *limits)
            made: list[th.Tensor] | None = self._backend.optimize(old, settings)
            self._uses_compiled = self._backend.is_on
            if made is not None:
                self._n_updates += len(made)
                return made
        epochs: list[th.Tensor] = []
        with lane("adam", self.policy) or Step(self.policy) as step:
            for _ in range(self.n_epochs):
                self._n_updates += 1
                rows: list[th.Tensor] = []
                for batch in old.epoch(batch_size):
                    loss, metrics = ppo_loss(self.objective, batch, old.kind.evaluate(batch), coef, normalizes_minibatch)
                    if self.target_kl is not None and metrics[APPROX_KL] > max_approx_kl:
                        return [*epochs, th.stack([*rows, F.pad(metrics, (0, 1), value=math.nan)])]
                    rows.append(th.cat([metrics, step(loss, self.max_grad_norm)[None]]))
                epochs.append(th.stack(rows))
        return epochs

    def _after_update(self, kl: float | None, coef: Mapping[str, float]) -> None:
        """Adapt what changes once per policy update, after its last epoch, to its mean KL[pi_old, pi] in nats, if known."""
        if isinstance(self.learning_rate, AdaptiveLearningRate):
            if kl is None:
                raise NotImplementedError("AdaptiveLearningRate needs KL[pi_old, pi], of which no closed form is known")
            present = self.adapted_learning_rate or self.learning_rate.initial
            self.adapted_learning_rate = self.learning_rate.adapt(present, kl)
            self._setup_lr_schedule()

    def _record(self, epochs: list[th.Tensor], coef: Mapping[str, float], kl: float | None) -> None:
        """Log the update under SB3's keys."""
        steps = dict(zip((*METRICS, "grad_norm"), th.cat(epochs).cpu().numpy().T, strict=True))
        for name in ("entropy_loss", "policy_gradient_loss", "value_loss"):
            self.logger.record(f"train/{name}", np.mean(steps[name], dtype=np.float64))
        # SB3 logs the last epoch's, in float32
        self.logger.record("train/approx_kl", np.mean(steps["approx_kl"][-len(epochs[-1]) :]))
        if "clip_range" in coef:
            self.logger.record("train/clip_fraction", np.mean(steps["clip_fraction"], dtype=np.float64))
        self.logger.record("train/loss", float(steps["loss"][-1]))
        explained = explained_variance(self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten())
        self.logger.record("train/explained_variance", explained)
        if np.isnan(steps["grad_norm"][-1]):
            self._print(f"Update ended in epoch {len(epochs) - 1}: approximate KL {steps['approx_kl'][-1]:.4f}")
            steps["grad_norm"] = steps["grad_norm"][:-1]
        if len(steps["grad_norm"]) > 0:
            self.logger.record("train/grad_norm", np.mean(steps["grad_norm"], dtype=np.float64))
        if kl is not None:
            self.logger.record("train/kl", kl)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        scheduled = [name for name in ("ent_coef", "vf_coef") if callable(getattr(self, name))]
        for name in ("clip_range", "clip_range_vf", "kl_coef", "kl_target", *scheduled):
            if name in coef:
                self.logger.record(f"train/{name}", coef[name])

    def _print(self, message: str) -> None:
        if self.verbose >= 1:
            print(message)

    def learn(
        self: SelfProximal,
        total_timesteps: float,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfProximal:
        """
        Train the policy: Algorithm 1's outer loop.

        :param total_timesteps: number of environment steps to train for; a float such as 1e6, or infinity, will do
        :param callback: callback(s) called at every step with the state of the algorithm
        :param log_interval: number of policy updates between two dumps of the log; ``None`` for none
        :param tb_log_name: name of the run in TensorBoard; the name of the class by default
        :param reset_num_timesteps: whether to count the timesteps from 0 again
        :param progress_bar: show a progress bar
        :return: the trained model
        :raises ValueError: if ``total_timesteps`` is negative or NaN, ``log_interval`` is 0, or a rollout is too small. Bad
            values that have been assigned to attributes raise what they raise in the constructor, also ``TypeError``
        :raises RuntimeError: if ``compile=True`` is not possible, at the start or in an update; mostly a ``CompilationError``
        :raises NonFiniteEnvironmentError: and ``NonFinitePolicyError``, as ``collect_rollouts``
        :raises NonFiniteUpdateError: as ``train``
        """
        self._check_arguments()
        checks.check_number("total_timesteps", total_timesteps, minimum=0, infinite=True)
        if log_interval == 0:
            raise ValueError("log_interval must not be 0: None is for no log")
        # Not in load, which is also for those who only want to look at a trained policy, in one environment
        arguments.check_rollout_size(self)
        # Until a callback ends it, if it is infinite
        n_timesteps: Any = total_timesteps if math.isinf(total_timesteps) else math.ceil(total_timesteps)
        with self._chosen_path(n_timesteps), kept_trainable(self.policy):
            name = type(self).__name__ if tb_log_name is None else tb_log_name
            return super().learn(n_timesteps, callback, log_interval, name, reset_num_timesteps, progress_bar)

    def _setup_learn(
        self, total_timesteps: int, callback: MaybeCallback = None, reset_num_timesteps: bool = True, *args: Any, **kwargs: Any
    ) -> tuple[int, BaseCallback]:
        is_reset = reset_num_timesteps or self._last_obs is None
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args, **kwargs)
        self._masks = contrib.find_masks(self, is_reset)
        return result

    def _chosen_path(self, n_timesteps: float) -> AbstractContextManager[None]:
        """Decide whether the coming ``learn`` compiles its updates; the context that it is to run in."""
        self._uses_compiled = False
        is_there = importlib.util.find_spec(f"{__package__}.compiled") is not None
        if self.compile is True and not is_there:
            raise RuntimeError("compile=True is not possible: sb3_ppo_variants.compiled is not installed")
        if self.compile is False or not is_there:
            self._backend = None
            return nullcontext()
        self._backend = self._backend or importlib.import_module(f"{__package__}.compiled.backend").Backend()
        self._uses_compiled = self._backend.begin(self, n_timesteps)
        return self._backend.threads(self.policy)

    load = classmethod(saving.load)  # type: ignore[var-annotated]
