"""The cross-entropy method (Szita and Lorincz 2006, https://doi.org/10.1162/neco.2006.18.12.2936)."""

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, BasePolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, obs_as_tensor, safe_mean
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from sb3_ppo_variants.lanes import lane
from sb3_ppo_variants.policies import latents

SelfCEM = TypeVar("SelfCEM", bound="CEM")


def refit(candidates: th.Tensor, returns: Sequence[float], n_elites: int) -> tuple[th.Tensor, th.Tensor]:
    """
    The Gaussian of the next generation: mean and standard deviation of the candidates with the highest returns.

    :param candidates: parameters, shape ``(n_candidates, n_parameters)``
    :param returns: return of each candidate
    :param n_elites: number of candidates that count
    :return: mean and standard deviation of each parameter
    """
    elites = candidates[th.tensor(returns).argsort(descending=True, stable=True)[:n_elites]]
    return elites.mean(dim=0), elites.std(dim=0, correction=0)


class CEM(BaseAlgorithm):
    """
    The noisy cross-entropy method over the parameters of a policy. Each generation draws candidates from a Gaussian with
    diagonal covariance, plays an episode with the mean action of each, and refits the Gaussian to the best of them. The policy
    of the model is the mean of the Gaussian. Of an ``ActorCriticPolicy`` neither value function nor ``log_std`` are used.

    :param policy: the policy to use: MlpPolicy, CnnPolicy, MultiInputPolicy
    :param env: the environment to learn from, of which there can be but one
    :param population_size: number of candidates in a generation
    :param elite_fraction: fraction of them to which the Gaussian is refitted
    :param initial_std: standard deviation of each parameter in the first generation
    :param extra_std: standard deviation of additional noise, so that the Gaussian does not collapse; a float
        or a schedule
    :param stats_window_size: number of episodes over which the logged return and length are averaged
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments for the policy
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: seed of the pseudo random generators
    :param device: device (cpu, cuda, ...) on which the code should run
    :param _init_setup_model: whether to build the network at the creation of the instance
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
    }
    policy: ActorCriticPolicy
    #: Deviation of each parameter; the mean is in the policy
    std: th.Tensor

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        population_size: int = 50,
        elite_fraction: float = 0.2,
        initial_std: float = 1.0,
        extra_std: float | Schedule = 0.0,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=0.0,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
        )
        self.population_size = population_size
        self.elite_fraction = elite_fraction
        self.initial_std = initial_std
        self.extra_std = extra_std
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        policy: Any = self.policy_class(self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs)
        self.policy = policy.to(self.device)
        self.std = th.full_like(parameters_to_vector(self._parameters()), self.initial_std).detach()

    def _parameters(self) -> list[th.nn.Parameter]:
        """The parameters that the mean action depends on."""
        policy = self.policy
        modules = (policy.pi_features_extractor, policy.mlp_extractor.policy_net, policy.action_net)
        return [parameter for module in modules for parameter in module.parameters()]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy"], ["std"]

    def learn(
        self: SelfCEM,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "CEM",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfCEM:
        """
        Train the policy; the last generation is played to its end.

        :param total_timesteps: number of environment steps to train for
        :param callback: callback(s) called at every step with the state of the algorithm
        :param log_interval: number of generations between two dumps of the log
        :param tb_log_name: name of the run in TensorBoard
        :param reset_num_timesteps: whether to count the timesteps from 0 again
        :param progress_bar: show a progress bar
        :return: the trained model
        """
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        callback.on_training_start(locals(), globals())
        iteration = 0
        while self.num_timesteps < total_timesteps and self._run_generation(callback):
            iteration += 1
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            if log_interval is not None and iteration % log_interval == 0:
                self.dump_logs()
        callback.on_training_end()
        return self

    def _run_generation(self, callback: BaseCallback) -> bool:
        """Play an episode with each candidate and refit the Gaussian, or tell that the callback ended the training."""
        parameters = self._parameters()
        mean = parameters_to_vector(parameters).detach()
        extra_std = FloatSchedule(self.extra_std)(self._current_progress_remaining)
        std = (self.std**2 + extra_std**2).sqrt()
        candidates = mean + std * th.randn(self.population_size, len(mean), device=self.device)
        callback.on_rollout_start()
        returns = []
        try:
            for candidate in candidates:
                vector_to_parameters(candidate, parameters)
                episode_return = self._play_episode(callback)
                if episode_return is None:
                    return False
                returns.append(episode_return)
        finally:
            vector_to_parameters(mean, parameters)
        callback.on_rollout_end()
        mean, self.std = refit(candidates, returns, max(round(self.elite_fraction * self.population_size), 1))
        vector_to_parameters(mean, parameters)
        self._n_updates += 1
        self.logger.record("train/std", self.std.mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        return True

    def _play_episode(self, callback: BaseCallback) -> float | None:
        """The return of an episode; ``None`` if the callback ended the training."""
        assert self.env is not None
        step = lane("env", self.env) or self.env.step
        total, dones = 0.0, np.array([False])
        while not dones[0]:
            actions = self._act(self._last_obs)
            new_obs, rewards, dones, infos = step(actions)
            self.num_timesteps += 1
            callback.update_locals(locals())
            if not callback.on_step():
                return None
            self._update_info_buffer(infos, dones)
            self._last_obs = new_obs  # type: ignore[assignment]
            total += float(rewards[0])
        return total

    @th.no_grad()
    def _act(self, observations: Any) -> np.ndarray:
        """The actions of ``predict``, for Gaussian policies without the distributions that it makes."""
        if not isinstance(self.action_space, spaces.Box):
            return self.predict(observations)[0]
        latent, _ = latents(self.policy, obs_as_tensor(observations, self.device))
        actions = self.policy.action_net(latent).cpu().numpy()
        return np.clip(actions, self.action_space.low, self.action_space.high)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        The mean action.

        :param observation: the observation
        :param state: not used
        :param episode_start: not used
        :param deterministic: not used: candidates are judged by their mean actions, too
        :return: the action, and ``state``
        """
        return self.policy.predict(observation, state, episode_start, deterministic=True)

    def dump_logs(self) -> None:
        """Write the log."""
        assert self.ep_info_buffer is not None
        if self.ep_info_buffer:
            self.logger.record("rollout/ep_rew_mean", safe_mean([info["r"] for info in self.ep_info_buffer]))
            self.logger.record("rollout/ep_len_mean", safe_mean([info["l"] for info in self.ep_info_buffer]))
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(step=self.num_timesteps)
