"""What tests share: environments with any spaces, policies with peculiarities, training with a record, and comparisons."""

import copy
import functools

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_ppo_variants import PPOClip

OBSERVATION_SPACES = {
    "box": spaces.Box(-1, 1, (5,), np.float32),
    "discrete": spaces.Discrete(4),
    "multidiscrete": spaces.MultiDiscrete([2, 3]),
    "image": spaces.Box(0, 255, (3, 36, 36), np.uint8),
    "dict": spaces.Dict({"vector": spaces.Box(-1, 1, (3,), np.float32), "image": spaces.Box(0, 255, (1, 36, 36), np.uint8)}),
    # What policies see as one vector
    "parts": spaces.Dict(
        {
            "vector": spaces.Box(-1, 1, (3,), np.float64),
            "matrix": spaces.Box(-1, 1, (2, 2), np.float32),
            "discrete": spaces.Discrete(3),
            "multibinary": spaces.MultiBinary(2),
        }
    ),
}

ACTION_SPACES = {
    "box": spaces.Box(-2, 2, (3,), np.float32),
    "discrete": spaces.Discrete(3),
    "multidiscrete": spaces.MultiDiscrete([2, 3, 4]),
    "multibinary": spaces.MultiBinary(3),
    "matrix": spaces.Box(-0.5, 0.5, (2, 3), np.float32),
}

POLICIES = {
    "box": "MlpPolicy",
    "discrete": "MlpPolicy",
    "multidiscrete": "MlpPolicy",
    "image": "CnnPolicy",
    "dict": "MultiInputPolicy",
    "parts": "MultiInputPolicy",
}


class SpaceEnv(gym.Env):
    """An environment with any spaces: random observations, a reward that depends on the action, episodes of 13 steps."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, truncate: bool = True):
        # Spaces sample from generators of their own
        self.observation_space = copy.deepcopy(observation_space)
        self.action_space = copy.deepcopy(action_space)
        self.truncate = truncate
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        over = self.steps == 13
        reward = float(np.sum(action)) / 10 + self.np_random.normal()
        return self.observation_space.sample(), reward, over and not self.truncate, over and self.truncate, {}


def space_env(observation, action, n_envs=2, env_class=SpaceEnv):
    """A function that makes a vectorized environment with spaces of these names."""
    make = functools.partial(env_class, OBSERVATION_SPACES[observation], ACTION_SPACES[action])
    return functools.partial(make_vec_env, make, n_envs=n_envs, seed=0)


class Record(KVWriter):
    """Keeps what is logged."""

    def __init__(self):
        self.rows = []

    def write(self, key_values, key_excluded, step=0):
        self.rows.append({key: value for key, value in key_values.items() if not key.startswith("time/")})

    def close(self):
        pass


def updates(rows):
    """The rows of a log in which there is an update."""
    return [row for row in rows if "train/loss" in row]


BOX_ENV = space_env("box", "box")


def train(cls, policy="MlpPolicy", make_env=BOX_ENV, n_updates=3, resume=False, change=None, callback=None, **kwargs):
    """A model after some updates, and the rows of its log. ``change`` is called with the model before the first one."""
    kwargs = {"n_steps": 26, "batch_size": 13, "n_epochs": 3, "seed": 3, "device": "cpu", **kwargs}
    env = make_env()
    model = cls(policy, env, **kwargs)
    if change is not None:
        change(model)
    record = Record()
    model.set_logger(Logger(None, [record]))
    total_timesteps = n_updates * kwargs["n_steps"] * env.num_envs
    model.learn(total_timesteps, callback)
    if resume:
        model.learn(total_timesteps, callback, reset_num_timesteps=False)
    record.write(dict(model.logger.name_to_value), {})
    env.close()
    return model, record.rows


def make_model(cls=PPOClip, policy="MlpPolicy", env=None, **kwargs):
    """A model that is not trained yet, of small rollouts: 26 steps in each of two environments."""
    kwargs = {"n_steps": 26, "batch_size": 26, "n_epochs": 2, "seed": 0, "device": "cpu", **kwargs}
    return cls(policy, BOX_ENV() if env is None else env, **kwargs)


def make_policy(cls=ActorCriticPolicy, observation="box", action="box", **kwargs):
    """A policy of SB3's."""
    th.manual_seed(0)
    return cls(OBSERVATION_SPACES[observation], ACTION_SPACES[action], lambda _: 1e-2, **kwargs)


def equal(a, b):
    """Whether two nested states are the same bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, th.Tensor):
        return th.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b, equal_nan=np.issubdtype(a.dtype, np.floating))
    return a == b or (a != a and b != b)


def buffer_arrays(model):
    buffer = model.rollout_buffer
    names = ("observations", "actions", "rewards", "returns", "episode_starts", "values", "log_probs", "advantages")
    return {name: getattr(buffer, name) for name in names}


def assert_same_training(expected, actual, ignored=frozenset()):
    """Parameters, optimizer, buffer and log of two results of ``train``, bit for bit; of the log, the first one's keys."""
    (model, rows), (other, other_rows) = expected, actual
    assert equal(model.policy.state_dict(), other.policy.state_dict())
    assert equal(model.policy.optimizer.state_dict(), other.policy.optimizer.state_dict())
    assert equal(buffer_arrays(model), buffer_arrays(other))
    assert model._n_updates == other._n_updates
    assert len(rows) == len(other_rows) > 1
    assert "train/loss" in rows[-1]
    for row, other_row in zip(rows, other_rows, strict=True):
        for key in row.keys() - ignored:
            assert equal(float(row[key]), float(other_row[key])), key


class InEachStep(BaseCallback):
    """Calls a function with the model at each step of a rollout."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def _on_step(self):
        self.change(self.model)
        return True


class InEachRollout(BaseCallback):
    """Calls a function with the model before each rollout, or at the end of each."""

    def __init__(self, change, at_end=False):
        super().__init__()
        self.change, self.at_end = change, at_end

    def _on_step(self):
        return True

    def _on_rollout_start(self):
        if not self.at_end:
            self.change(self.model)

    def _on_rollout_end(self):
        if self.at_end:
            self.change(self.model)


class OwnPolicy(ActorCriticPolicy):
    """Its own evaluate_actions."""

    def evaluate_actions(self, obs, actions):
        values, log_prob, entropy = super().evaluate_actions(obs, actions)
        return 1.5 * values, log_prob, entropy


class OwnNetworks(ActorCriticPolicy):
    """Acts by a network of its own; SB3's are still there, unused."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.own = th.nn.Linear(5, 4)
        self.optimizer = self.optimizer_class(self.parameters(), lr=1e-3, **self.optimizer_kwargs)

    def act(self, obs):
        return th.distributions.Normal(self.own(obs)[:, :3], self.log_std.exp())

    def forward(self, obs, deterministic=False):
        actions = self.act(obs).sample()
        return actions, self.predict_values(obs), self.act(obs).log_prob(actions).sum(dim=1)

    def evaluate_actions(self, obs, actions):
        distribution = self.act(obs)
        return self.predict_values(obs), distribution.log_prob(actions).sum(dim=1), distribution.entropy().sum(dim=1)

    def predict_values(self, obs):
        return self.own(obs)[:, 3:]


class LinearExtractor(BaseFeaturesExtractor):
    """A linear layer whose output is multiplied by what a subclass says."""

    def __init__(self, observation_space):
        super().__init__(observation_space, features_dim=8)
        self.layer = th.nn.Linear(observation_space.shape[0], 8)

    def scale(self):
        return 1.0

    def forward(self, observations):
        return self.scale() * self.layer(observations)


class InPlaceExtractor(LinearExtractor):
    """Overwrites its input."""

    def forward(self, observations):
        return super().forward(observations.sub_(0.5).mul_(2.0))


class NoisyExtractor(LinearExtractor):
    """Draws random numbers also in evaluation."""

    def forward(self, observations):
        return super().forward(observations) + 0.1 * th.randn(len(observations), 8)


class RunningMeanExtractor(LinearExtractor):
    """Keeps a running mean of all observations that it sees."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.register_buffer("mean", th.zeros(8))

    def forward(self, observations):
        features = super().forward(observations)
        self.mean = 0.9 * self.mean + 0.1 * features.detach().mean(dim=0)
        return features - self.mean


class BatchNormExtractor(BaseFeaturesExtractor):
    """Running statistics: what behaves differently in training and in evaluation."""

    def __init__(self, observation_space):
        super().__init__(observation_space, features_dim=8)
        self.layers = th.nn.Sequential(th.nn.Linear(5, 8), th.nn.BatchNorm1d(8), th.nn.ReLU())

    def forward(self, observations):
        return self.layers(observations)


class DropoutExtractor(BatchNormExtractor):
    """And noise."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.layers.append(th.nn.Dropout(0.3))


class HalvedAdvantages(RolloutBuffer):
    """A custom rollout buffer."""

    def compute_returns_and_advantage(self, last_values, dones):
        super().compute_returns_and_advantage(last_values, dones)
        self.advantages *= 0.5


def with_extractor(cls, **kwargs):
    """The argument that gives a model an extractor of features."""
    return {"policy_kwargs": {"features_extractor_class": cls, **kwargs}}
