"""
Algorithm 1 of the PPO paper on Stable-Baselines3's ``OnPolicyAlgorithm``: what the variants share.

==========================================================  ===================================================
for iteration = 1, 2, ... do                                SB3's ``OnPolicyAlgorithm.learn``
  for actor = 1, 2, ..., N do                               the environments of SB3's vec-envs
    Run policy pi_old in environment for T timesteps        ``collect_rollouts`` in collect.py
    Compute advantage estimates A_1, ..., A_T               ``compute_returns_and_advantage`` in rollout.py
  end for
  Optimize surrogate L with respect to theta,               ``train`` and ``_optimize`` here,
    with K epochs and minibatch size M <= N T               ``ppo_loss`` in loss.py, ``surrogate`` of a variant
  theta_old <- theta                                        ``Rollout`` in rollout.py, made in ``train``
end for
==========================================================  ===================================================
"""

import inspect
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, BasePolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, PyTorchObs, Schedule
from stable_baselines3.common.utils import FloatSchedule, explained_variance

from sb3_ppo_variants import checks
from sb3_ppo_variants.adam import ForeachAdam, not_plain_adam
from sb3_ppo_variants.inference import Evaluation, StraightPolicy, evaluate_policy, unvalidated_distributions
from sb3_ppo_variants.loading import LoadableAlgorithm
from sb3_ppo_variants.loss import APPROX_KL, METRICS, SurrogateTerms, ppo_loss
from sb3_ppo_variants.objectives import Coefficient
from sb3_ppo_variants.paths import TwoPathAlgorithm
from sb3_ppo_variants.rollout import KeptDistributions, Rollout
from sb3_ppo_variants.stand_in import has_replaced_methods, is_of_sb3, is_standard_mlp
from sb3_ppo_variants.undo import undone_after_errors

SelfProximal = TypeVar("SelfProximal", bound="ProximalPolicyOptimization")


class ProximalPolicyOptimization(TwoPathAlgorithm, LoadableAlgorithm):
    """
    Proximal policy optimization, Algorithm 1 of https://arxiv.org/abs/1707.06347, but for the surrogate objective L^S,
    which a subclass defines in ``surrogate``. The loss that is minimised is equation (9) with its sign turned::

        - L^S + vf_coef L^VF - ent_coef S

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, ...)
    :param env: The environment to learn from (if registered in Gymnasium, can be str)
    :param learning_rate: Adam's step size; a float or a function of the remaining progress (from 1 to 0)
    :param n_steps: T, the number of steps per environment and update
    :param batch_size: M, the minibatch size
    :param n_epochs: K, the number of passes over the rollout per update
    :param gamma: discount factor, equation (12)
    :param gae_lambda: lambda of the truncated generalized advantage estimator, equations (11) and (12)
    :param clip_range: epsilon of equation (7), a float or a schedule; ``None`` for no clipping, where the class allows it
    :param clip_range_vf: half the width of the interval around the old value in which the new one may lie, a float or a
        schedule, in units of the return (not in the paper); ``None`` for no such clipping
    :param normalize_advantage: ``True``: shift and scale the advantages to mean 0 and deviation 1 in each minibatch;
        ``"batch"``: once in each rollout, as the paper's authors' code; ``False``: not at all
    :param ent_coef: c2 of equation (9), a float or a schedule
    :param vf_coef: c1 of equation (9), a float or a schedule
    :param max_grad_norm: largest norm of the gradient (not in the paper); ``None`` for no clipping of the gradient
    :param use_sde: whether to use generalized State Dependent Exploration (gSDE)
    :param sde_sample_freq: sample a new noise matrix every n steps when using gSDE; -1: only at the start of a rollout
    :param rollout_buffer_class: rollout buffer class to use; ``None``: chosen by the observation space
    :param rollout_buffer_kwargs: keyword arguments for the rollout buffer
    :param target_kl: what the class says
    :param stats_window_size: number of episodes over which the logged success rate, length and reward are averaged
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments for the policy
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: seed of the pseudo random generators
    :param device: device (cpu, cuda, ...) on which the code should run; "auto" for the GPU if possible
    :param _init_setup_model: whether to build the network at the creation of the instance
    :param compile: ``True``: compile the minibatch step, and round differently from SB3 in rollouts; needs a C++ compiler.
        ``False``: the reference path, which computes what SB3 computes, bit for bit. ``"auto"``: compile where the length of
        the training pays for it and the policy, optimizer, buffer and machine allow it; says why not at ``verbose=1``
    :raises ValueError: if an argument is out of range, or the action space is not supported
    :raises TypeError: if an argument is of the wrong type
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
    }

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
        target_kl: float | Schedule | None = None,
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
        # SB3 checks spaces with asserts
        try:
            super().__init__(
                policy,
                env,  # type: ignore[arg-type]
                learning_rate=learning_rate,
                n_steps=n_steps,
                gamma=gamma,
                gae_lambda=gae_lambda,
                ent_coef=ent_coef,  # type: ignore[arg-type]
                vf_coef=vf_coef,  # type: ignore[arg-type]
                max_grad_norm=max_grad_norm,  # type: ignore[arg-type]
                use_sde=use_sde,
                sde_sample_freq=sde_sample_freq,
                rollout_buffer_class=rollout_buffer_class,
                rollout_buffer_kwargs=rollout_buffer_kwargs,
                stats_window_size=stats_window_size,
                tensorboard_log=tensorboard_log,
                policy_kwargs=policy_kwargs,
                verbose=verbose,
                device=device,
                seed=seed,
                _init_setup_model=False,
                supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
            )
        except AssertionError as error:
            raise ValueError(f"env: {error}") from error
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.clip_range = clip_range
        self.clip_range_vf = clip_range_vf
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.compile = compile
        self._kept: KeptDistributions | None = None

        if _init_setup_model:
            self._setup_model()
            if self.env is not None:
                self._check_rollout_size()
                self._warn_of_truncated_minibatches()

    def _setup_model(self) -> None:
        self._check_arguments()
        if not callable(self.learning_rate):
            # SB3 knows no numbers of NumPy's
            self.learning_rate = float(self.learning_rate)
        try:
            super()._setup_model()
        # SB3 checks with asserts whether policy and spaces go together
        except AssertionError as error:
            raise ValueError(f"The policy or the rollout buffer cannot be built: {error}") from error
        for name in ("clip_range", "clip_range_vf"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, FloatSchedule(value if callable(value) else float(value)))

    def _check_arguments(self) -> None:
        """
        Check the arguments, those of the constructor and those given to ``load``.

        :raises ValueError: if one is out of range
        :raises TypeError: if one is of the wrong type
        """
        is_policy = isinstance(self.policy_class, type) and issubclass(self.policy_class, ActorCriticPolicy)
        # That of a recurrent policy takes its state, too
        if not (is_policy and _is_called_with(self.policy_class.forward, "self", "observation")):
            raise ValueError(
                f"policy must be an ActorCriticPolicy, but is {self.policy_class}: "
                f"{type(self).__name__} cannot use the policies (and the saved models) of other algorithms"
            )
        checks.check_coefficient("learning_rate", self.learning_rate, minimum=0)
        checks.check_integer("n_steps", self.n_steps, minimum=1)
        checks.check_integer("batch_size", self.batch_size, minimum=1)
        checks.check_integer("n_epochs", self.n_epochs, minimum=1)
        checks.check_number("gamma", self.gamma, minimum=0, maximum=1)
        checks.check_number("gae_lambda", self.gae_lambda, minimum=0, maximum=1)
        checks.check_coefficient("clip_range", self.clip_range, above=0, optional=True, infinite=True)
        checks.check_coefficient("clip_range_vf", self.clip_range_vf, above=0, optional=True, infinite=True)
        checks.check_coefficient("ent_coef", self.ent_coef)
        checks.check_coefficient("vf_coef", self.vf_coef, minimum=0)
        checks.check_number("max_grad_norm", self.max_grad_norm, above=0, optional=True, infinite=True)
        checks.check_type("use_sde", self.use_sde, bool)
        checks.check_integer("sde_sample_freq", self.sde_sample_freq, minimum=-1)
        checks.check_type("policy_kwargs", self.policy_kwargs, dict)
        if not (self.rollout_buffer_class is None or callable(self.rollout_buffer_class)):
            raise TypeError(f"rollout_buffer_class must be a class or None, but is {self.rollout_buffer_class!r}")
        checks.check_type("rollout_buffer_kwargs", self.rollout_buffer_kwargs, dict)
        checks.check_type("seed", self.seed, int, np.integer, type(None))
        checks.check_integer("stats_window_size", self._stats_window_size, minimum=1)
        checks.check_choice("normalize_advantage", self.normalize_advantage, (True, False, "batch"))
        checks.check_choice("compile", self.compile, (True, False, "auto"))
        if self.normalize_advantage is True and self.batch_size == 1:
            raise ValueError("batch_size must be greater than 1 with normalize_advantage=True, but is 1")
        if not hasattr(self, "action_space"):
            raise ValueError("env must be an environment or the id of one, but is None")
        needs_dict = self.policy_class is MultiInputActorCriticPolicy and "features_extractor_class" not in self.policy_kwargs
        if needs_dict and not isinstance(self.observation_space, spaces.Dict):
            raise ValueError(f"policy is for dictionaries of observations, but those of env are {self.observation_space}")

    def _check_rollout_size(self) -> None:
        if self.normalize_advantage and self.n_steps * self.n_envs == 1:
            raise ValueError(
                f"n_steps * n_envs = {self.n_steps} * {self.n_envs} = 1, but advantages can only be normalised over more than "
                "one sample"
            )

    def _warn_of_truncated_minibatches(self) -> None:
        rollout_size = self.n_steps * self.n_envs
        if rollout_size % self.batch_size > 0:
            # Subclasses may have constructors, and the warning is to point to where the outermost is called
            constructors = [cls for cls in type(self).__mro__ if "__init__" in vars(cls)]
            warnings.warn(
                f"batch_size = {self.batch_size} does not divide n_steps * n_envs = {self.n_steps} * {self.n_envs} = "
                f"{rollout_size}: the last minibatch of each epoch is truncated to {rollout_size % self.batch_size} samples",
                stacklevel=3 + constructors.index(ProximalPolicyOptimization),
            )

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_kept"]

    @abstractmethod
    def surrogate(self, terms: SurrogateTerms, coef: Mapping[str, Coefficient]) -> th.Tensor:
        """
        The surrogate objective L^S per sample, to be maximised: what makes a variant.

        A function of its arguments alone: what reads attributes of ``self`` is not compiled. ``coefficients`` is the place
        for numbers.

        :param terms: ratio, advantages, KL and so on of a minibatch, each of shape ``(batch,)``
        :param coef: the coefficients of this update, from ``coefficients``
        :return: the objective, shape ``(batch,)``
        """

    def coefficients(self) -> dict[str, float]:
        """
        The coefficients of the loss in the coming update. Those that are ``None`` (no such clipping) are left out.

        :return: their values by name
        :raises ValueError: if a schedule returns a number that is not finite
        """
        coef = {"ent_coef": self._coefficient("ent_coef"), "vf_coef": self._coefficient("vf_coef", minimum=0)}
        for name in ("clip_range", "clip_range_vf"):
            if getattr(self, name) is not None:
                progress = self._current_progress_remaining
                coef[name] = self._coefficient(name, self._scheduled_minimum(), infinite=True, progress=progress)
        return coef

    def _coefficient(
        self, name: str, minimum: float = -math.inf, infinite: bool = False, progress: float | None = None
    ) -> float:
        """
        The present value of a coefficient that is a float or a schedule.

        :param name: name of the argument
        :param minimum: smallest value allowed
        :param infinite: whether infinity is allowed
        :param progress: the remaining progress; if it is not given, it is 0 in the part of the last rollout that overshoots
        :return: the value
        """
        # kl_coef is a property of this
        value = self.__dict__[name] if name in self.__dict__ else getattr(self, name)
        if callable(value):
            progress = max(self._current_progress_remaining, 0.0) if progress is None else progress
            return checks.scheduled_value(name, value, progress, minimum, infinite)
        # It may have been assigned since it was checked
        number = float(value)
        checks.check_number(name, number, minimum=minimum, infinite=infinite)
        return number

    def _scheduled_minimum(self) -> float:
        """
        The smallest value that a schedule of the learning rate or of a clip range may have.

        The last rollout may overshoot, and the remaining progress is below 0 then. SB3's schedules see that, and a linear one
        falls below 0 with it.
        """
        return 0.0 if self._current_progress_remaining >= 0 else -math.inf

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        """
        Set Adam's step size for the coming update.

        :param optimizers: the optimizer, or a list of optimizers
        :raises ValueError: if the schedule returns a number that is negative or not finite
        """
        super()._update_learning_rate(optimizers)
        where = f"learning_rate (at remaining progress {self._current_progress_remaining:g})"
        for group in self.policy.optimizer.param_groups:
            checks.check_number(where, float(group["lr"]), minimum=self._scheduled_minimum())

    def _max_approx_kl(self) -> float | None:
        """The approximate KL of a minibatch above which an update ends early, in nats; ``None`` for never."""
        return None if self.target_kl is None else 1.5 * self.target_kl  # type: ignore[operator]

    def _after_update(self, kl: float, coef: Mapping[str, float]) -> None:
        """
        What changes once per policy update, after the last epoch.

        :param kl: exact mean KL[pi_old, pi] over the rollout, in nats
        :param coef: the coefficients of that update
        """

    def train(self) -> None:
        """
        Optimize the surrogate objective on the current rollout: the last two lines of Algorithm 1's loop.

        :raises NonFiniteUpdateError: (a ``FloatingPointError``) if the update makes a parameter or a loss NaN or infinite.
            Parameters, optimizer and counters are then as they were before the update, as after any error in it.
        """
        with undone_after_errors(self) as before, unvalidated_distributions():
            self._update_learning_rate(self.policy.optimizer)
            coef = self.coefficients()
            # theta_old <- theta
            kept, self._kept = self._kept, None
            old_parameters = () if kept is None else kept.of(self.rollout_buffer)
            rollout = Rollout(self.rollout_buffer, self.policy, old_parameters, self.normalize_advantage == "batch")
            # Switch to train mode (this affects batch norm and dropout)
            self.policy.set_training_mode(True)
            max_approx_kl = self._max_approx_kl()
            epochs = self._optimize(rollout, coef, max_approx_kl)
            approx_kl = epochs[-1][-1, APPROX_KL]
            if max_approx_kl is not None and approx_kl > max_approx_kl:
                self._print(f"Update ended in epoch {len(epochs) - 1}: approximate KL {approx_kl:.4f}")
            kl = rollout.mean_kl()
            # The KL is part of the loss where it has a weight
            before.check(self, epochs, kl if coef.get("kl_coef", 0) > 0 else None)
        self._record(epochs, coef, kl)
        if kl is not None:
            self._after_update(kl, coef)

    def _optimize(self, rollout: Rollout, coef: Mapping[str, float], max_approx_kl: float | None) -> list[th.Tensor]:
        """
        K epochs of minibatch steps on the rollout, or fewer, if a minibatch exceeds ``max_approx_kl``.

        :return: the values of ``METRICS`` at each step of each epoch, of shape ``(n_steps, n_metrics)``
        """
        if self._uses_compiled:
            compiled_epochs = self._optimize_compiled(rollout, coef, max_approx_kl)
            if compiled_epochs is not None:
                return compiled_epochs
        epochs: list[th.Tensor] = []
        standardizes = self.normalize_advantage is True
        with self._evaluate_and_step() as (evaluate, step):
            for _ in range(self.n_epochs):
                self._n_updates += 1
                metrics = []
                for batch in rollout.epoch(self.batch_size):
                    evaluation = evaluate(batch.observations, batch.actions)
                    loss, measured = ppo_loss(self.surrogate, batch, evaluation, coef, standardizes)
                    metrics.append(measured)
                    if max_approx_kl is not None and measured[APPROX_KL] > max_approx_kl:
                        return [*epochs, th.stack(metrics)]
                    step(loss)
                epochs.append(th.stack(metrics))
        return epochs

    @contextmanager
    def _evaluate_and_step(
        self,
    ) -> Iterator[tuple[Callable[[PyTorchObs, th.Tensor], Evaluation], Callable[[th.Tensor], None]]]:
        """The functions that evaluate a minibatch and that make a step on its loss."""
        policy, max_grad_norm = self.policy, self.max_grad_norm
        evaluate = StraightPolicy(policy).evaluate if is_standard_mlp(policy) else partial(evaluate_policy, policy)
        if is_of_sb3(policy) and not_plain_adam(policy) is None:
            # The same numbers, with less overhead
            adam = ForeachAdam(policy)
            yield evaluate, lambda loss: adam.step(loss, max_grad_norm)
            adam.store()
            return

        def step(loss: th.Tensor) -> None:
            policy.optimizer.zero_grad()
            loss.backward()
            if max_grad_norm is not None:
                th.nn.utils.clip_grad_norm_(policy.parameters(), max_grad_norm)
            policy.optimizer.step()

        yield evaluate, step

    def _record(self, epochs: list[th.Tensor], coef: Mapping[str, float], kl: float | None) -> None:
        """Log the update under SB3's keys."""
        steps = dict(zip(METRICS, th.cat(epochs).cpu().numpy().T, strict=True))
        for name in ("entropy_loss", "policy_gradient_loss", "value_loss"):
            self.logger.record(f"train/{name}", np.mean(steps[name], dtype=np.float64))
        # SB3 logs the last epoch's, in float32
        self.logger.record("train/approx_kl", np.mean(steps["approx_kl"][-len(epochs[-1]) :]))
        if "clip_range" in coef:
            self.logger.record("train/clip_fraction", np.mean(steps["clip_fraction"], dtype=np.float64))
        self.logger.record("train/loss", float(steps["loss"][-1]))
        explained = explained_variance(self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten())
        self.logger.record("train/explained_variance", explained)
        if kl is not None:
            self.logger.record("train/kl", kl)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name in ("clip_range", "clip_range_vf", "kl_coef", "kl_target"):
            if name in coef:
                self.logger.record(f"train/{name}", coef[name])
        for name in ("ent_coef", "vf_coef"):
            if callable(getattr(self, name)):
                self.logger.record(f"train/{name}", coef[name])

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
        :raises ValueError: if ``total_timesteps`` is negative or NaN, ``log_interval`` is 0, or a rollout too small
        :raises TypeError: if ``total_timesteps`` is no number
        :raises RuntimeError: if ``compile=True``, and that is not possible; if that is found only in the first update, or in a
            later one, it is a ``CompilationError``
        :raises NonFiniteEnvironmentError: (a ``ValueError``) if the environment returned NaN or infinity
        :raises NonFiniteUpdateError: (a ``FloatingPointError``) as ``train``
        """
        checks.check_number("total_timesteps", total_timesteps, minimum=0, infinite=True)
        has_replaced_methods.cache_clear()
        if log_interval == 0:
            raise ValueError("log_interval must not be 0: None is for no log")
        # Not in load, which is also for those who only want to look at a trained policy, in one environment
        self._check_rollout_size()
        self._choose_path(total_timesteps)
        with self._threads():
            return super().learn(
                # Until a callback ends it, if it is infinite
                total_timesteps=total_timesteps if math.isinf(total_timesteps) else math.ceil(total_timesteps),  # type: ignore[arg-type]
                callback=callback,
                log_interval=log_interval,
                tb_log_name=type(self).__name__ if tb_log_name is None else tb_log_name,
                reset_num_timesteps=reset_num_timesteps,
                progress_bar=progress_bar,
            )


def _is_called_with(function: Callable[..., Any], *arguments: str) -> bool:
    """Whether a function can be called with some positional arguments, and no others, as far as that can be told."""
    # Some functions have no signature
    with suppress(ValueError):
        try:
            inspect.signature(function).bind(*arguments)
        except TypeError:
            return False
    return True
