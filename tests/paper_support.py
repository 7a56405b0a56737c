"""What the tests of the paper's runs share: their models, and what a training sees and learns from."""

from typing import NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.paper import figure3, training
from benchmarks.paper.experiments import Run


def make_model(setting, env, seed=0, variant="paper", **kwargs):
    """A model of the studies."""
    run = Run(variant, setting, env, seed)
    n_envs = figure3.ALL[setting].n_envs if setting in figure3.ALL else 1
    return training.make_model(run, make_vec_env(lambda: training.make_env(run), n_envs=n_envs, seed=seed), **kwargs)


class Learned(NamedTuple):
    """What an update is going to learn from, and values and log probabilities by the policy of that moment."""

    observations: np.ndarray
    values: np.ndarray
    log_probs: np.ndarray
    own_values: np.ndarray
    own_log_probs: np.ndarray


class Inspect(BaseCallback):
    """Keeps raw observations, and rollouts as updates get them."""

    def __init__(self):
        super().__init__()
        self.raw, self.rollouts = [], []

    def _on_rollout_start(self):
        self.raw.append(self.training_env.get_original_obs())

    def _on_step(self):
        self._on_rollout_start()
        return True

    def _on_rollout_end(self):
        # The next rollout begins with the last one
        self.raw.pop()
        if "rollout_buffer" not in self.locals:
            return
        buffer = self.locals["rollout_buffer"]
        obs, actions = (th.as_tensor(np.concatenate(array)).float() for array in (buffer.observations, buffer.actions))
        with th.no_grad():
            values, log_probs, _ = self.model.policy.evaluate_actions(obs, actions)
        own = (tensor.view(buffer.values.shape).numpy() for tensor in (values, log_probs))
        self.rollouts.append(Learned(*map(np.copy, (buffer.observations, buffer.values, buffer.log_probs)), *own))


def statistics_of_ppo1(observations):
    """Mean and deviation, with a hundredth of an observation of mean 0 and deviation 1, and no deviation below 0.1."""
    data = np.concatenate(observations).astype(np.float64)
    count = len(data) + 1e-2
    mean = data.sum(axis=0) / count
    return mean, np.sqrt(np.maximum((np.square(data).sum(axis=0) + 1e-2) / count - mean**2, 1e-2))
