"""Algorithm 1 of the PPO paper on Stable-Baselines3's ``OnPolicyAlgorithm``: what the variants share."""

import copy
import inspect
import io
import math
import pathlib
import warnings
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, BasePolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, PyTorchObs, RolloutBufferSamples, Schedule
from stable_baselines3.common.utils import FloatSchedule, explained_variance
from stable_baselines3.common.vec_env import VecEnv
from torch.nn import functional as F

from sb3_ppo_variants import checks
from sb3_ppo_variants.kl import kl_old_new
from sb3_ppo_variants.objectives import Coefficient

SelfProximal = TypeVar("SelfProximal", bound="ProximalPolicyOptimization")

# Samples per forward pass when the KL of a whole rollout is measured: bounds the memory that images take
KL_CHUNK_SIZE = 1024


class NonFiniteUpdateError(FloatingPointError, ValueError):
    """
    A policy update made a parameter or a loss NaN or infinite. The model is as it was before that update.

    Also a ``ValueError``, which is what SB3's distributions raise in the same place and what RL Zoo's search prunes.
    """


class SurrogateTerms:
    """
    What a surrogate objective is made of, for one minibatch. All tensors have shape ``(batch,)``.

    :param log_prob: log pi(a|s) in nats, with gradient
    :param old_log_prob: log pi_old(a|s) in nats
    :param advantages: advantage estimates, normalised if the algorithm normalises them
    :param kl: computes KL[pi_old(.|s), pi(.|s)] in nats
    """

    def __init__(
        self, log_prob: th.Tensor, old_log_prob: th.Tensor, advantages: th.Tensor, kl: Callable[[], th.Tensor]
    ) -> None:
        self.log_prob = log_prob
        self.advantages = advantages
        self.log_ratio = log_prob - old_log_prob
        self.ratio = th.exp(self.log_ratio)
        self._kl = kl

    @cached_property
    def kl(self) -> th.Tensor:
        """KL[pi_old(.|s), pi(.|s)] in nats, exact; computed when first asked for, so that it is free where unused."""
        return self._kl()


def frozen_copy(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    """
    pi_old: a copy of the policy in evaluation mode, without gradients and without optimizer.

    :param policy: the policy to copy; unchanged
    :return: the copy
    """
    # deepcopy fails on the noise matrices of gSDE, which are not leaves of the graph. Two policies need two distribution
    # objects, as SB3 keeps the parameters of the last call there, but their contents may be shared.
    memo: dict[int, Any] = {
        id(policy.optimizer): None,
        id(policy.action_dist): copy.copy(policy.action_dist),
    }
    frozen = copy.deepcopy(policy, memo)
    frozen.requires_grad_(False)
    frozen.set_training_mode(False)
    return frozen


@contextmanager
def preserved_random_state(device: th.device) -> Iterator[None]:
    """Leave NumPy's and torch's generators as they were, so that a measurement does not change the training."""
    numpy_state = np.random.get_state()
    with th.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    np.random.set_state(numpy_state)


@contextmanager
def unvalidated_distributions() -> Iterator[None]:
    """Let torch's distributions take NaN: an update is checked once as a whole, and undone if need be."""
    validated = th.distributions.Distribution._validate_args
    th.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        th.distributions.Distribution.set_default_validate_args(validated)


class ProximalPolicyOptimization(OnPolicyAlgorithm):
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
    :param compile: accepted for what is to come; every value trains on the reference path, which is bit for bit SB3's PPO
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

        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._check_arguments()
        super()._setup_model()
        if self.clip_range is not None:
            self.clip_range = FloatSchedule(self.clip_range)
        if self.clip_range_vf is not None:
            self.clip_range_vf = FloatSchedule(self.clip_range_vf)

    def _check_arguments(self) -> None:
        """
        Check the arguments, those of the constructor and those given to ``load``.

        :raises ValueError: if one is out of range
        :raises TypeError: if one is of the wrong type
        """
        if not (isinstance(self.policy_class, type) and issubclass(self.policy_class, ActorCriticPolicy)):
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
        checks.check_coefficient("clip_range", self.clip_range, above=0, optional=True)
        checks.check_coefficient("clip_range_vf", self.clip_range_vf, above=0, optional=True)
        checks.check_coefficient("ent_coef", self.ent_coef)
        checks.check_coefficient("vf_coef", self.vf_coef, minimum=0)
        checks.check_number("max_grad_norm", self.max_grad_norm, above=0, optional=True)
        checks.check_integer("sde_sample_freq", self.sde_sample_freq)
        checks.check_integer("stats_window_size", self._stats_window_size, minimum=1)
        checks.check_choice("normalize_advantage", self.normalize_advantage, (True, False, "batch"))
        checks.check_choice("compile", self.compile, (True, False, "auto"))
        if self.normalize_advantage is True and self.batch_size == 1:
            raise ValueError("batch_size must be greater than 1 with normalize_advantage=True, but is 1")
        if self.env is not None:
            self._check_rollout_size(self.n_steps * self.n_envs)

    def _check_rollout_size(self, rollout_size: int) -> None:
        sizes = f"n_steps * n_envs = {self.n_steps} * {self.n_envs} = {rollout_size}"
        if self.normalize_advantage and rollout_size == 1:
            raise ValueError(f"{sizes}, but advantages can only be normalised over more than one sample")
        if rollout_size % self.batch_size > 0:
            warnings.warn(
                f"batch_size = {self.batch_size} does not divide {sizes}: the last minibatch of each epoch is truncated to "
                f"{rollout_size % self.batch_size} samples",
                stacklevel=2,
            )

    @abstractmethod
    def surrogate(self, terms: SurrogateTerms, coef: Mapping[str, Coefficient]) -> th.Tensor:
        """
        The surrogate objective L^S per sample, to be maximised: what makes a variant.

        Must be a function of its arguments alone, without reading from or writing to ``self``, so that it can be compiled.

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
        coef = {"ent_coef": self._current("ent_coef"), "vf_coef": self._current("vf_coef", minimum=0)}
        for name in ("clip_range", "clip_range_vf"):
            schedule = getattr(self, name)
            if schedule is not None:
                # As in SB3, the progress falls below 0 where the last rollout overshoots the end
                coef[name] = checks.scheduled_value(name, schedule, self._current_progress_remaining)
        return coef

    def _current(self, name: str, minimum: float = -math.inf) -> float:
        """The present value of a coefficient that is a float or a schedule."""
        coefficient = self.__dict__[name]
        if callable(coefficient):
            return checks.scheduled_value(name, coefficient, max(self._current_progress_remaining, 0.0), minimum)
        return float(coefficient)

    def _early_stop_kl(self) -> float | None:
        """SB3's ``target_kl``: 2/3 of the approximate KL at which an update ends early, or ``None`` for never."""
        return self.target_kl  # type: ignore[return-value]

    def _after_update(self, kl: float) -> None:
        """
        What changes once per policy update, after the last epoch.

        :param kl: exact mean KL[pi_old, pi] over the rollout, in nats
        """

    def train(self) -> None:
        """
        Optimize the surrogate objective on the current rollout: the last two lines of Algorithm 1's loop.

        :raises NonFiniteUpdateError: (a ``FloatingPointError``) if the update makes a parameter or a loss NaN or infinite.
            Parameters, optimizer and counters are then as they were before the update, as after any error in it.
        """
        self._update_learning_rate(self.policy.optimizer)
        coef = self.coefficients()
        old_n_updates = self._n_updates
        old_optimizer_state = copy.deepcopy(self.policy.optimizer.state_dict())
        # theta_old <- theta
        old_policy = frozen_copy(self.policy)
        metrics = UpdateMetrics()
        try:
            with unvalidated_distributions():
                self._optimize(old_policy, coef, metrics)
                kl = self._mean_kl(old_policy)
            self._check_finite(metrics, kl)
        except Exception as error:
            self.policy.load_state_dict(old_policy.state_dict())
            self.policy.optimizer.load_state_dict(old_optimizer_state)
            self._n_updates = old_n_updates
            # What torch's optimizers raise where a step size does not fit into a float32
            if isinstance(error, RuntimeError) and "without overflow" in str(error):
                raise NonFiniteUpdateError(self._non_finite_message(["the optimizer's step"])) from error
            raise
        self._record(metrics, coef, kl)
        if kl is not None:
            self._after_update(kl)

    def _optimize(self, old_policy: ActorCriticPolicy, coef: Mapping[str, float], metrics: "UpdateMetrics") -> None:
        """K epochs of minibatch steps on the rollout."""
        # Switch to train mode (this affects batch norm and dropout)
        self.policy.set_training_mode(True)
        max_kl = self._early_stop_kl()
        normalize = self._advantage_normalizer()
        for epoch in range(self.n_epochs):
            metrics.start_epoch()
            self._n_updates += 1
            for samples in self.rollout_buffer.get(self.batch_size):
                loss = self._loss(samples, old_policy, coef, normalize, metrics)
                if max_kl is not None and metrics.approx_kl[-1].item() > 1.5 * max_kl:
                    if self.verbose >= 1:
                        print(f"Update ended in epoch {epoch}: approximate KL {metrics.approx_kl[-1].item():.4f}")
                    return
                self.policy.optimizer.zero_grad()
                loss.backward()
                if self.max_grad_norm is not None:
                    th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
                self.policy.optimizer.step()

    def _loss(
        self,
        samples: RolloutBufferSamples,
        old_policy: ActorCriticPolicy,
        coef: Mapping[str, float],
        normalize: Callable[[th.Tensor], th.Tensor],
        metrics: "UpdateMetrics",
    ) -> th.Tensor:
        """Equation (9) with its sign turned, on a minibatch."""
        actions = samples.actions
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        values, log_prob, entropy = self.policy.evaluate_actions(samples.observations, actions)
        values = values.flatten()

        def kl() -> th.Tensor:
            with th.no_grad():
                old = old_policy.get_distribution(samples.observations)
            return kl_old_new(old, self._evaluated_distribution(samples.observations))

        terms = SurrogateTerms(log_prob, samples.old_log_prob, normalize(samples.advantages), kl)
        policy_loss = -self.surrogate(terms, coef).mean()

        if "clip_range_vf" in coef:
            change = th.clamp(values - samples.old_values, -coef["clip_range_vf"], coef["clip_range_vf"])
            values = samples.old_values + change
        value_loss = F.mse_loss(samples.returns, values)

        # Distributions without a closed form of the entropy get the estimate E[-log pi(a|s)]
        entropy_loss = -th.mean(-log_prob) if entropy is None else -th.mean(entropy)

        loss = policy_loss + coef["ent_coef"] * entropy_loss + coef["vf_coef"] * value_loss
        metrics.add(loss, policy_loss, value_loss, entropy_loss, terms, coef.get("clip_range"))
        return loss

    def _advantage_normalizer(self) -> Callable[[th.Tensor], th.Tensor]:
        """The function that shifts and scales the advantages of a minibatch."""
        if self.normalize_advantage == "batch":
            # Once a rollout, with the population's deviation, as in the paper's authors' code
            mean, std = float(self.rollout_buffer.advantages.mean()), float(self.rollout_buffer.advantages.std())
            return lambda advantages: (advantages - mean) / (std + 1e-8)
        if self.normalize_advantage:
            # The deviation of a single sample, as in a truncated minibatch, is not defined
            return lambda advantages: (
                (advantages - advantages.mean()) / (advantages.std() + 1e-8) if len(advantages) > 1 else advantages
            )
        return lambda advantages: advantages

    def _evaluated_distribution(self, observations: PyTorchObs) -> Distribution:
        """The action distribution of the last ``evaluate_actions``, with gradient."""
        policy_type = type(self.policy)
        if (
            policy_type.evaluate_actions is ActorCriticPolicy.evaluate_actions
            and policy_type._get_action_dist_from_latent is ActorCriticPolicy._get_action_dist_from_latent
        ):
            # SB3's policies leave it there, which saves a second forward pass
            return self.policy.action_dist
        return self.policy.get_distribution(observations)

    def _mean_kl(self, old_policy: ActorCriticPolicy) -> float | None:
        """
        E[KL[pi_old(.|s), pi(.|s)]] in nats over the whole rollout, of the policies in evaluation mode. ``None`` if it is not
        known for the policy's distribution.
        """
        total, n_samples = 0.0, 0
        self.policy.set_training_mode(False)
        try:
            with th.no_grad(), preserved_random_state(self.device):
                for samples in self.rollout_buffer.get(KL_CHUNK_SIZE):
                    old = old_policy.get_distribution(samples.observations)
                    kl = kl_old_new(old, self.policy.get_distribution(samples.observations))
                    total += kl.sum(dtype=th.float64).item()
                    n_samples += len(kl)
        except NotImplementedError:
            return None
        finally:
            self.policy.set_training_mode(True)
        return total / n_samples

    def _check_finite(self, metrics: "UpdateMetrics", kl: float | None) -> None:
        """
        Check what the update has made.

        :raises NonFiniteUpdateError: if something is NaN or infinite
        """
        tensors = {f"policy.{name}": value for name, value in self.policy.state_dict().items()} | metrics.losses()
        names = [name for name, tensor in tensors.items() if not th.isfinite(tensor).all()]
        if kl is not None and not math.isfinite(kl):
            names.append("KL[pi_old, pi]")
        if names:
            raise NonFiniteUpdateError(self._non_finite_message(names))

    def _non_finite_message(self, names: list[str]) -> str:
        if len(names) > 3:
            names = [*names[:3], f"and {len(names) - 3} more"]
        return (
            f"The policy update after {self.num_timesteps} timesteps made these NaN or infinite: {', '.join(names)}. "
            "The model has been put back to its state before that update and can be saved. "
            "Try a smaller learning_rate or n_epochs, a max_grad_norm, or VecNormalize for the rewards."
        )

    def _record(self, metrics: "UpdateMetrics", coef: Mapping[str, float], kl: float | None) -> None:
        """Log the update under SB3's keys."""
        for name, value in metrics.summary().items():
            self.logger.record(f"train/{name}", value)
        explained = explained_variance(self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten())
        self.logger.record("train/explained_variance", explained)
        if kl is not None:
            self.logger.record("train/kl", kl)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name in ("clip_range", "clip_range_vf", "kl_coef"):
            if name in coef:
                self.logger.record(f"train/{name}", coef[name])
        for name in ("ent_coef", "vf_coef"):
            if callable(getattr(self, name)):
                self.logger.record(f"train/{name}", coef[name])

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Run pi_old in the environments for T steps, as SB3.

        :param env: the training environment
        :param callback: called at each step, and at the beginning and end of the rollout
        :param rollout_buffer: buffer to fill
        :param n_rollout_steps: T, the number of steps per environment
        :return: False if the callback ended the rollout early
        :raises ValueError: if the environment returned NaN or infinity
        """
        try:
            complete = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        except ValueError as error:
            # What a distribution raises on the NaN that the policy makes of a NaN observation
            checks.check_observation(self._last_obs)
            raise error
        if complete:
            checks.check_rollout(rollout_buffer)
        return complete

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

        :param total_timesteps: number of environment steps to train for; a float such as 1e6 will do
        :param callback: callback(s) called at every step with the state of the algorithm
        :param log_interval: number of policy updates between two dumps of the log; ``None`` for none
        :param tb_log_name: name of the run in TensorBoard; the name of the class by default
        :param reset_num_timesteps: whether to count the timesteps from 0 again
        :param progress_bar: show a progress bar
        :return: the trained model
        :raises ValueError: if ``total_timesteps`` is negative or not finite
        """
        checks.check_number("total_timesteps", total_timesteps, minimum=0)
        return super().learn(
            total_timesteps=math.ceil(total_timesteps),
            callback=callback,
            log_interval=log_interval,
            tb_log_name=type(self).__name__ if tb_log_name is None else tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )

    @classmethod
    def load(
        cls: type[SelfProximal],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfProximal:
        """
        Load a model from a zip-file, as SB3, but with errors that name what is wrong.

        :param path: path to the file (or a file-like)
        :param env: environment to run the loaded model on; has priority over any saved environment
        :param device: device on which the code should run
        :param custom_objects: objects to use instead of the saved ones, by name
        :param print_system_info: whether to print system info from the saved model and the current system
        :param force_reset: reset the environment before training
        :param kwargs: arguments of the constructor to change
        :return: the loaded model
        :raises TypeError: if ``kwargs`` has a name that the class does not know
        :raises ValueError: if the file is damaged, or not a model of this kind
        """
        known = vars(cls("MlpPolicy", None, _init_setup_model=False)).keys() | inspect.signature(cls).parameters.keys()
        unknown = sorted(kwargs.keys() - known)
        if unknown:
            raise TypeError(f"{cls.__name__}.load() got an unexpected keyword argument: {', '.join(unknown)}")
        try:
            return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        except (AssertionError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} is damaged, or is not a saved {cls.__name__} model: {error}") from error


class UpdateMetrics:
    """
    Metrics of the minibatches of one update. They stay tensors until the update is over, as reading each of them would
    make the host wait for the device at every minibatch.
    """

    def __init__(self) -> None:
        self.loss: list[th.Tensor] = []
        self.policy_gradient_loss: list[th.Tensor] = []
        self.value_loss: list[th.Tensor] = []
        self.entropy_loss: list[th.Tensor] = []
        self.clip_fraction: list[th.Tensor] = []
        self.approx_kl: list[th.Tensor] = []

    def start_epoch(self) -> None:
        """SB3 logs the approximate KL of the last epoch only."""
        self.approx_kl = []

    def add(
        self,
        loss: th.Tensor,
        policy_loss: th.Tensor,
        value_loss: th.Tensor,
        entropy_loss: th.Tensor,
        terms: SurrogateTerms,
        clip_range: float | None,
    ) -> None:
        """
        Add a minibatch.

        :param loss: what is minimised, as the other three a tensor without dimensions
        :param policy_loss: its surrogate part
        :param value_loss: its value part
        :param entropy_loss: its entropy part
        :param terms: terms of the surrogate
        :param clip_range: epsilon, if there is clipping
        """
        ratio, log_ratio = terms.ratio.detach(), terms.log_ratio.detach()
        self.loss.append(loss.detach())
        self.policy_gradient_loss.append(policy_loss.detach())
        self.value_loss.append(value_loss.detach())
        self.entropy_loss.append(entropy_loss.detach())
        # Estimator k3 of http://joschu.net/blog/kl-approx.html
        self.approx_kl.append(th.mean((ratio - 1) - log_ratio))
        if clip_range is not None:
            self.clip_fraction.append(th.mean((th.abs(ratio - 1) > clip_range).float()))

    def losses(self) -> dict[str, th.Tensor]:
        """Every loss of the update, by name, one entry per minibatch."""
        return {"loss": th.stack(self.loss)}

    def summary(self) -> dict[str, float]:
        """What SB3 logs of an update, by its names."""
        means = ("policy_gradient_loss", "value_loss", "entropy_loss", "clip_fraction")
        summary = {name: float(np.mean(th.stack(values).tolist())) for name in means if (values := getattr(self, name))}
        summary["approx_kl"] = float(th.stack(self.approx_kl).cpu().numpy().mean())
        summary["loss"] = self.loss[-1].item()
        return summary
