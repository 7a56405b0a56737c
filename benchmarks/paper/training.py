"""One run: where the paper is silent, as its authors' code of 2017 (openai/baselines, ppo1) did it."""

import time
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from benchmarks.contestants.a2c_trust_region import A2CTrustRegion
from benchmarks.paper import figure3
from benchmarks.paper.experiments import REFERENCES, SETTINGS, VARIANTS, PessimisticValues, Run, hyperparameters
from benchmarks.provenance import environment, versions
from sb3_ppo_variants import NonFiniteEnvironmentError, NonFiniteUpdateError
from sb3_ppo_variants.wrappers import TimeLimitIsTerminal, UnboundedActions

# Episodes that the score of a run is the mean of (section 6.1)
LAST_EPISODES = 100


@dataclass
class Result:
    """
    What a run leaves.

    :param row: the row of runs.csv
    :param curves: lengths and returns of all training episodes; KL and beta of each update
    """

    row: dict[str, Any]
    curves: dict[str, np.ndarray]


def make_env(run: Run) -> gym.Env[Any, Any]:
    """
    The environment of a run.

    :param run: the run
    :return: the environment
    """
    env = TimeLimitIsTerminal(gym.make(run.env))
    bounded = VARIANTS[run.variant].bounded_actions or run.setting == "uniform"
    return env if bounded else UnboundedActions(env)


def initialize_as_baselines(policy: ActorCriticPolicy) -> None:
    """
    Initialise the layers as ppo1: normal weights, those of a unit scaled to norm 1 (0.01 in the last layer of the policy), and
    biases of 0.

    :param policy: an MLP policy, changed in place
    """
    with th.no_grad():
        for module in policy.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_()
                norm = 0.01 if module is policy.action_net else 1.0
                module.weight.mul_(norm / module.weight.norm(dim=1, keepdim=True))
                module.bias.zero_()


class ObservationFilter(BaseCallback):
    """
    The running mean and standard deviation of ppo1: they change between rollout and optimisation, which sees the new ones,
    and no standard deviation is smaller than 0.1.

    :param env: the environment, whose own statistics stand still
    """

    def __init__(self, env: VecNormalize) -> None:
        super().__init__()
        assert not env.training
        self.env = env
        statistics: Any = env.obs_rms
        self.statistics = statistics
        # Of observations so far, as if there had been a hundredth of one, of mean 0 and variance 1
        self.sum: np.ndarray = np.zeros(self.statistics.mean.shape)
        self.sum_of_squares: np.ndarray = np.full(self.sum.shape, 1e-2)
        self.count = 1e-2
        self.observations: list[np.ndarray] = []

    def _on_rollout_start(self) -> None:
        # What the first action of the rollout was chosen for comes from before it
        self.observations = [self._original()]

    def _on_step(self) -> bool:
        self.observations.append(self._original())
        return True

    def _original(self) -> np.ndarray:
        # A new array at each step, which `get_original_obs` would copy
        assert isinstance(self.env.old_obs, np.ndarray)
        return self.env.old_obs

    def _on_rollout_end(self) -> None:
        observations = np.stack(self.observations[:-1]).astype(np.float64)
        self.sum += observations.sum(axis=(0, 1))
        self.sum_of_squares += np.square(observations).sum(axis=(0, 1))
        self.count += observations.shape[0] * observations.shape[1]
        self.statistics.mean = self.sum / self.count
        self.statistics.var = np.maximum(self.sum_of_squares / self.count - np.square(self.statistics.mean), 1e-2)
        # What the next rollout begins with
        self.model._last_obs = self.env.normalize_obs(self.observations[-1])
        if "rollout_buffer" not in self.locals:
            # The cross-entropy method has none
            return
        # pi_old is the old parameters with the new statistics
        buffer, policy = self.locals["rollout_buffer"], self.model.policy
        assert isinstance(policy, ActorCriticPolicy)
        buffer.observations[:] = self.env.normalize_obs(observations)
        samples = (th.as_tensor(np.concatenate(array)).float() for array in (buffer.observations, buffer.actions))
        with th.no_grad():
            values, log_probs, _ = policy.evaluate_actions(*samples)
        # Advantages and returns are known already: the old values count where new ones are clipped
        buffer.values[:] = values.numpy().reshape(buffer.values.shape)
        buffer.log_probs[:] = log_probs.numpy().reshape(buffer.log_probs.shape)


class CheckFinite(BaseCallback):
    """Ends a training where an algorithm that does not look itself would go on with NaN or infinity."""

    def _on_rollout_start(self) -> None:
        if not all(th.isfinite(parameter).all() for parameter in self.model.policy.parameters()):
            raise NonFiniteUpdateError("The update made parameters of the policy NaN or infinite")

    def _on_step(self) -> bool:
        if not all(np.isfinite(self.locals[name]).all() for name in ("new_obs", "rewards")):
            raise NonFiniteEnvironmentError("The environment returned NaN or infinity")
        return True


class Recorder(BaseCallback):
    """Records all episodes of a training, and KL and beta of its updates."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: list[int] = []
        self.returns: list[float] = []
        self.kl: list[float] = []
        self.kl_coef: list[float] = []

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.lengths.append(info["episode"]["l"])
                self.returns.append(info["episode"]["r"])
        return True

    def _on_rollout_start(self) -> None:
        logged = self.logger.name_to_value
        if "train/kl" in logged:
            self.kl.append(logged["train/kl"])
            self.kl_coef.append(logged.get("train/kl_coef", 0.0))

    def _on_training_end(self) -> None:
        self._on_rollout_start()


def train(run: Run, timesteps: int, commit: str) -> Result:
    """
    Make a run.

    :param run: the run
    :param timesteps: its length; policies that are not trained play ``LAST_EPISODES`` episodes
    :param commit: of the repository
    :return: its row and its curves; a run that diverges ends there
    :raises RuntimeError: if no episode has ended
    """
    # Several runs share the cores
    th.set_num_threads(1)
    start = time.perf_counter()
    n_envs = figure3.ALL[run.setting].n_envs if run.setting in figure3.ALL else 1
    env = make_vec_env(lambda: make_env(run), n_envs=n_envs, seed=run.seed)
    recorder = Recorder()
    diverged = False
    if run.setting in REFERENCES:
        steps = play(run, env, recorder)
    else:
        model = make_model(run, env)
        callbacks: list[BaseCallback] = [recorder]
        if isinstance(model.env, VecNormalize):
            callbacks.insert(0, ObservationFilter(model.env))
        if run.setting in figure3.ALL:
            callbacks.insert(0, CheckFinite())
        try:
            model.learn(timesteps, callback=callbacks)
        except (NonFiniteUpdateError, NonFiniteEnvironmentError):
            # A result, too: the score is that of the episodes until then
            diverged = True
        steps = model.num_timesteps
    if not recorder.returns:
        raise RuntimeError(f"no episode ended in {steps} timesteps")
    packages = ("sb3_ppo_variants", "stable-baselines3", "torch", "gymnasium", "mujoco", "numpy")
    row = {
        "variant": run.variant,
        "setting": run.setting,
        "env": run.env,
        "seed": run.seed,
        "timesteps": timesteps,
        "steps": steps,
        "diverged": diverged,
        "episodes": len(recorder.returns),
        "score": round(float(np.mean(recorder.returns[-LAST_EPISODES:])), 4),
        "seconds": round(time.perf_counter() - start, 1),
        "versions": versions(packages),
        "commit": commit,
        **environment(),
    }
    curves = {
        "lengths": np.array(recorder.lengths, np.int32),
        "returns": np.array(recorder.returns, np.float32),
        "kl": np.array(recorder.kl, np.float32),
        "kl_coef": np.array(recorder.kl_coef, np.float32),
    }
    return Result(row, curves)


def make_model(run: Run, env: Any, compile: Any = "auto") -> BaseAlgorithm:  # noqa: A002
    """
    The model of a run.

    :param run: the run
    :param env: its vectorized environment, without normalisation
    :param compile: as the algorithm's
    :return: the model
    """
    arguments, variant = hyperparameters(run), VARIANTS[run.variant]
    if variant.normalized_rewards:
        env = VecNormalize(env, norm_obs=False, clip_reward=10.0, gamma=arguments["gamma"])
    if not variant.raw_observations:
        env = VecNormalize(env, training=False, norm_reward=False, clip_obs=5.0, epsilon=0.0)
    model: BaseAlgorithm
    if run.setting in figure3.ALL:
        model = figure3.ALL[run.setting].algorithm("MlpPolicy", env, seed=run.seed, device="cpu", **arguments)
    else:
        algorithm = SETTINGS[run.setting].algorithm
        if variant.pessimistic_values:
            algorithm = type(algorithm.__name__, (PessimisticValues, algorithm), {})
        model = algorithm("MlpPolicy", env, seed=run.seed, device="cpu", compile=compile, **arguments)
    assert isinstance(model.policy, ActorCriticPolicy)
    initialize_as_baselines(model.policy)
    if isinstance(model, A2CTrustRegion):
        model.average_policy.load_state_dict(model.policy.state_dict())
    return model


def play(run: Run, env: Any, recorder: Recorder) -> int:
    """
    Play episodes without training.

    :param run: the run
    :param env: its vectorized environment
    :param recorder: notes the episodes
    :return: the number of timesteps
    """
    if run.setting == "untrained":
        model = make_model(Run(run.variant, "none", run.env, run.seed), env)
        assert model.env is not None
        env = model.env
    observations = env.reset()
    env.action_space.seed(run.seed)
    steps = 0
    while len(recorder.returns) < LAST_EPISODES:
        if run.setting == "untrained":
            actions, _ = model.predict(observations)
        else:
            actions = np.array([env.action_space.sample()])
        observations, _, _, infos = env.step(actions)
        recorder.locals = {"infos": infos}
        recorder._on_step()
        steps += 1
    return steps
