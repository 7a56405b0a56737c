"""PPOClip(compile=False) is SB3's PPO bit for bit, and the variants are each other where the paper says so."""

import functools
import inspect
import random
from collections import deque
from typing import NamedTuple

import numpy as np
import pytest
import torch as th
from conftest import ACTION_SPACES, OBSERVATION_SPACES, SpaceEnv
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, MlpExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from torch.optim.optimizer import register_optimizer_step_post_hook

from sb3_ppo_variants import NonFiniteEnvironmentError, PPOClip, PPOFixedKL, PPOKLPen

POLICIES = {"box": "MlpPolicy", "discrete": "MlpPolicy", "image": "CnnPolicy", "dict": "MultiInputPolicy"}


class Record(KVWriter):
    """Keeps what is logged."""

    def __init__(self):
        self.rows = []

    def write(self, key_values, key_excluded, step=0):
        self.rows.append({key: value for key, value in key_values.items() if not key.startswith("time/")})

    def close(self):
        pass


def train(cls, policy, make_env, n_updates=3, resume=False, **kwargs):
    kwargs = {"n_steps": 26, "batch_size": 13, "n_epochs": 3, "seed": 3, "device": "cpu", **kwargs}
    env = make_env()
    model = cls(policy, env, **kwargs)
    record = Record()
    model.set_logger(Logger(None, [record]))
    total_timesteps = n_updates * kwargs["n_steps"] * env.num_envs
    model.learn(total_timesteps)
    if resume:
        model.learn(total_timesteps, reset_num_timesteps=False)
    record.write(dict(model.logger.name_to_value), {})
    env.close()
    return model, record.rows


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


def space_env(observation, action, n_envs=2):
    make = functools.partial(SpaceEnv, OBSERVATION_SPACES[observation], ACTION_SPACES[action])
    return functools.partial(make_vec_env, make, n_envs=n_envs, seed=0)


@pytest.mark.parametrize("action", ACTION_SPACES)
@pytest.mark.parametrize("observation", OBSERVATION_SPACES)
def test_policies_and_spaces(observation, action):
    make_env = space_env(observation, action)
    n_updates = 2 if observation in ("image", "dict") else 3
    expected = train(PPO, POLICIES[observation], make_env, n_updates)
    actual = train(PPOClip, POLICIES[observation], make_env, n_updates, compile=False)
    assert_same_training(expected, actual)
    # The training did something
    assert expected[1][-1]["train/approx_kl"] > 0


@pytest.mark.parametrize("shape", [(2, 3), (1, 3)])
def test_actions_of_several_dimensions(shape):
    make = functools.partial(SpaceEnv, OBSERVATION_SPACES["box"], spaces.Box(-0.5, 0.5, shape, np.float32))
    make_env = functools.partial(make_vec_env, make, n_envs=2, seed=0)
    expected = train(PPO, "MlpPolicy", make_env)
    assert_same_training(expected, train(PPOClip, "MlpPolicy", make_env, compile=False))


class FlatValues(ActorCriticPolicy):
    """A custom policy whose values have no second dimension."""

    def forward(self, obs, deterministic=False):
        actions, values, log_prob = super().forward(obs, deterministic)
        return actions, values.flatten(), log_prob


class DropoutExtractor(BaseFeaturesExtractor):
    """Noise and running statistics: what behaves differently in training and in evaluation."""

    def __init__(self, observation_space):
        super().__init__(observation_space, features_dim=8)
        self.layers = th.nn.Sequential(th.nn.Linear(5, 8), th.nn.BatchNorm1d(8), th.nn.ReLU(), th.nn.Dropout(0.3))

    def forward(self, observations):
        return self.layers(observations)


class NoisyExtractor(DropoutExtractor):
    """Draws random numbers also in evaluation."""

    def forward(self, observations):
        return self.layers(observations) + 0.1 * th.randn(len(observations), 8)


class RunningMeanExtractor(DropoutExtractor):
    """Keeps a running mean of all observations that it sees."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.register_buffer("mean", th.zeros(8))

    def forward(self, observations):
        features = self.layers[0](observations)
        self.mean = 0.9 * self.mean + 0.1 * features.detach().mean(dim=0)
        return features - self.mean


class StatefulExtractor(DropoutExtractor):
    """Keeps what is no buffer, and draws from generators of its own."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.mean, self.total, self.n_calls = th.zeros(8), np.zeros(8), 0
        self.statistics = RunningMeanStd(shape=(8,))
        self.generators = {"torch": th.Generator(), "numpy": [np.random.default_rng(0), np.random.RandomState(0)]}
        self.python = random.Random(0)
        self.recent = deque(maxlen=3)

    def forward(self, observations):
        features = self.layers[0](observations)
        values = features.detach().numpy()
        self.mean = 0.9 * self.mean + 0.1 * features.detach().mean(dim=0)
        self.total += values.sum(axis=0)
        self.n_calls += 1
        self.statistics.update(values)
        self.recent.append(values.mean())
        noise = th.randn(8, generator=self.generators["torch"])
        noise = noise * self.generators["numpy"][0].normal() * self.generators["numpy"][1].normal() * self.python.random()
        scale = 1 + 1e-3 * (self.n_calls % 7) + 1e-3 * sum(self.recent) + 1e-4 * np.tanh(self.total).sum()
        return scale * (features - self.mean - th.as_tensor(self.statistics.mean, dtype=th.float32)) + 0.1 * noise


class Mean:
    """A running mean in an object of a class of its own."""

    def __init__(self):
        self.value, self.n_calls = 0.0, 0

    def update(self, value):
        self.n_calls += 1
        self.value += (value - self.value) / self.n_calls


class PlainObjectExtractor(DropoutExtractor):
    """Keeps an object that is no module, and its last output with its history."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.stat, self.last = Mean(), None

    def forward(self, observations):
        self.last = self.layers[0](observations)
        self.stat.update(self.last.mean().item())
        return self.last - self.stat.value


class FunctionExtractor(DropoutExtractor):
    """Holds a function that refers to itself, and that a copy has in common with it."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.function = lambda observations: self.layers(observations)

    def forward(self, observations):
        return self.function(observations)


class InPlaceExtractor(DropoutExtractor):
    """Overwrites its input."""

    def forward(self, observations):
        return self.layers[0](observations.sub_(0.5).mul_(2.0))


class ClonesInForward(ActorCriticPolicy):
    def forward(self, obs, deterministic=False):
        return super().forward(obs.clone(), deterministic)


class OwnPolicy(ActorCriticPolicy):
    """A custom policy with its own evaluate_actions."""

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


class WithoutSB3sNetworks(OwnNetworks):
    def _build(self, lr_schedule):
        self.log_std = th.nn.Parameter(th.zeros(3))
        self.action_net = None


class HalvedAdvantages(RolloutBuffer):
    """A custom rollout buffer."""

    def compute_returns_and_advantage(self, last_values, dones):
        super().compute_returns_and_advantage(last_values, dones)
        self.advantages *= 0.5


class OwnOrder(RolloutBuffer):
    """A custom rollout buffer with a random generator of its own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rng = np.random.default_rng(0)

    def get(self, batch_size=None):
        *_, everything = super().get()
        for index in np.split(self.rng.permutation(self.buffer_size * self.n_envs), 4):
            yield type(everything)(*(tensor[index] for tensor in everything))


class OtherSamples(NamedTuple):
    """Samples in an order of their own, with a field more."""

    weights: th.Tensor
    observations: th.Tensor
    returns: th.Tensor
    actions: th.Tensor
    advantages: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor


class WithOtherSamples(RolloutBuffer):
    """A custom rollout buffer whose samples are no tuple of SB3's, drawn with a generator and a counter of its own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.generator, self.counts = th.Generator(), {"passes": 0}

    def get(self, batch_size=None):
        self.counts["passes"] += 1
        *_, everything = super().get()
        for index in th.randperm(self.buffer_size * self.n_envs, generator=self.generator).split(13):
            samples = {name: tensor[index] for name, tensor in everything._asdict().items()}
            samples["advantages"] = samples["advantages"] / self.counts["passes"]
            yield OtherSamples(weights=th.ones(len(index)), **samples)


SETTINGS = {
    "defaults": {},
    "truncated minibatches": {"batch_size": 17},
    "truncated to one sample": {"batch_size": 25},
    "larger than the rollout": {"batch_size": 100},
    "entropy": {"ent_coef": 0.02, "vf_coef": 0.8},
    "no advantage normalization": {"normalize_advantage": False, "batch_size": 1, "n_epochs": 1},
    "value clipping": {"clip_range_vf": 0.1},
    "early stop": {"target_kl": 1e-3, "learning_rate": 3e-3},
    "schedules": {
        "learning_rate": LinearSchedule(1e-2, 0.0, 1.0),
        "clip_range": LinearSchedule(0.3, 0.0, 1.0),
        "clip_range_vf": LinearSchedule(0.3, 0.0, 1.0),
    },
    "gradient norm": {"max_grad_norm": 0.01},
    "sde": {"use_sde": True, "sde_sample_freq": 4},
    "squashed sde": {"use_sde": True, "policy_kwargs": {"squash_output": True, "use_expln": True, "full_std": False}},
    "separate extractors": {"policy_kwargs": {"share_features_extractor": False, "net_arch": [16]}},
    "optimizer": {
        "policy_kwargs": {"optimizer_class": th.optim.RMSprop, "optimizer_kwargs": {"momentum": 0.5}, "ortho_init": False}
    },
    "adam": {"policy_kwargs": {"optimizer_kwargs": {"betas": (0.8, 0.99), "eps": 1e-7, "weight_decay": 0.01}}},
    "dropout and batch norm": {"policy_kwargs": {"features_extractor_class": DropoutExtractor}},
    "noise in evaluation": {"policy_kwargs": {"features_extractor_class": NoisyExtractor}},
    "running mean": {"policy_kwargs": {"features_extractor_class": RunningMeanExtractor}},
    "state that is no buffer": {"policy_kwargs": {"features_extractor_class": StatefulExtractor}},
    "state in an object": {"policy_kwargs": {"features_extractor_class": PlainObjectExtractor}},
    "function that refers to its module": {"policy_kwargs": {"features_extractor_class": FunctionExtractor}},
    "overwritten input": {"policy_kwargs": {"features_extractor_class": InPlaceExtractor}},
    "custom buffer": {"rollout_buffer_class": HalvedAdvantages},
    "custom buffer with its own order": {"rollout_buffer_class": OwnOrder},
    "custom buffer with other samples": {"rollout_buffer_class": WithOtherSamples},
    "numbers of NumPy": {"gamma": np.float64(0.97), "gae_lambda": np.float64(0.9)},
    "activation with parameters": {"policy_kwargs": {"activation_fn": th.nn.PReLU}},
    "other activation": {"policy_kwargs": {"activation_fn": th.nn.ELU, "net_arch": {"pi": [8], "vf": [16, 8]}}},
    "infinite limits": {"max_grad_norm": float("inf"), "clip_range_vf": float("inf"), "target_kl": float("inf")},
    "gamma and lambda": {"gamma": 0.9, "gae_lambda": 0.7},
}


@pytest.mark.parametrize("policy", [OwnNetworks, WithoutSB3sNetworks])
def test_policy_that_does_not_act_by_the_distribution_that_it_returns(policy):
    expected, actual = (train(cls, policy, space_env("box", "box")) for cls in (PPO, PPOClip))
    assert_same_training(expected, actual)
    assert "train/kl" not in actual[1][-1]
    with pytest.raises(
        NotImplementedError, match="get_distribution does not return the distribution that evaluate_actions uses"
    ):
        train(PPOKLPen, policy, space_env("box", "box"))


class OverwritesActions(OwnPolicy):
    def evaluate_actions(self, obs, actions):
        return super().evaluate_actions(obs, actions.mul_(0.5))


class MovingAverage(OwnPolicy):
    """Each evaluation changes a parameter."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.average = th.nn.Parameter(th.zeros_like(self.value_net.weight), requires_grad=False)

    def evaluate_actions(self, obs, actions):
        with th.no_grad():
            self.average.lerp_(self.value_net.weight, 0.1)
        return super().evaluate_actions(obs, actions)


class InFloat64(OwnPolicy):
    def evaluate_actions(self, obs, actions):
        values, log_prob, entropy = super().evaluate_actions(obs, actions)
        return values, log_prob.double(), entropy


class GradientPenalty(OwnPolicy):
    """Needs gradients."""

    def evaluate_actions(self, obs, actions):
        values, log_prob, entropy = super().evaluate_actions(obs, actions)
        (gradient,) = th.autograd.grad(log_prob.sum(), self.action_net.bias, create_graph=True)
        return values + 1e-3 * gradient.norm(), log_prob, entropy


def of_instance(policy):
    """With a method set on the object, which copies of it call, too."""
    evaluate = policy.evaluate_actions
    policy.evaluate_actions = lambda obs, actions: evaluate(obs, actions)


@pytest.mark.parametrize("buffer", [None, HalvedAdvantages])
@pytest.mark.parametrize("policy", [OverwritesActions, MovingAverage, InFloat64, GradientPenalty, of_instance])
def test_policy_that_is_evaluated_to_find_its_distribution(policy, buffer):
    """Once an update more often than by SB3, without a trace; it acts by what ``get_distribution`` returns."""

    def trained(cls, **kwargs):
        of_object = policy is of_instance
        env = space_env("box", "box")()
        kwargs |= {"n_steps": 26, "batch_size": 13, "n_epochs": 2, "seed": 0, "rollout_buffer_class": buffer}
        model = cls("MlpPolicy" if of_object else policy, env, **kwargs)
        if of_object:
            of_instance(model.policy)
        model.learn(104)
        return model

    expected, actual = trained(PPO), trained(PPOClip, compile=False)
    assert equal(expected.policy.state_dict(), actual.policy.state_dict())
    assert actual.logger.name_to_value["train/kl"] > 0
    assert trained(PPOKLPen).kl_coef != 1


def test_module_beside_those_of_sb3():
    """The loss does not depend on it."""

    def trained(cls, **kwargs):
        model = cls("MlpPolicy", space_env("box", "box")(), n_steps=26, batch_size=13, seed=0, **kwargs)
        model.policy.beside = th.nn.Linear(3, 3)
        model.policy.mlp_extractor.beside = th.nn.Linear(3, 3)
        model.policy.optimizer = th.optim.Adam(model.policy.parameters(), lr=3e-4)
        return model.learn(104).policy.state_dict()

    assert equal(trained(PPO), trained(PPOClip, compile=False))


def test_values_without_a_second_dimension():
    make_env = space_env("box", "box")
    assert_same_training(train(PPO, FlatValues, make_env), train(PPOClip, FlatValues, make_env, compile=False))


class TwoLikeliest(ActorCriticPolicy):
    """Never takes any but the two likeliest actions, so that an update may rule out what was taken."""

    def _get_action_dist_from_latent(self, latent_pi):
        logits = self.action_net(latent_pi)
        ruled_out = logits < logits.topk(2).values[..., -1:]
        return self.action_dist.proba_distribution(logits.masked_fill(ruled_out, -th.inf))


def test_kl_that_is_infinite_is_but_logged():
    kwargs = {"learning_rate": 0.01}
    make_env = space_env("box", "discrete")
    expected = train(PPO, TwoLikeliest, make_env, **kwargs)
    actual = train(PPOClip, TwoLikeliest, make_env, compile=False, **kwargs)
    assert actual[1][-1]["train/kl"] == actual[1][-1]["train/approx_kl"] == np.inf
    assert_same_training(expected, actual)
    assert_same_training(expected, train(PPOFixedKL, TwoLikeliest, make_env, clip_range=0.2, kl_coef=0, **kwargs))
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        train(PPOFixedKL, TwoLikeliest, make_env, **kwargs)


def test_layers_that_are_unfrozen_later():
    """Adam counts the steps of each parameter."""

    def trained(cls, **kwargs):
        model, _ = train(cls, "MlpPolicy", space_env("box", "box"), policy_kwargs={"net_arch": [8]}, **kwargs)
        del model.policy.optimizer.state[model.policy.log_std]
        model.learn(52, reset_num_timesteps=False)
        return model

    expected, actual = trained(PPO), trained(PPOClip, compile=False)
    assert equal(expected.policy.state_dict(), actual.policy.state_dict())
    assert equal(expected.policy.optimizer.state_dict(), actual.policy.optimizer.state_dict())


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size", "ignore:batch_size = .* does not divide")
def test_settings(setting):
    kwargs = SETTINGS[setting]
    # 26 samples a rollout, or 52
    make_env = space_env("box", "box", n_envs=1 if setting == "truncated to one sample" else 2)
    expected = train(PPO, "MlpPolicy", make_env, resume=True, **kwargs)
    actual = train(PPOClip, "MlpPolicy", make_env, resume=True, compile=False, **kwargs)
    assert_same_training(expected, actual)
    if setting == "early stop":
        # 2 * 3 updates of 3 epochs, had none ended early
        assert 6 < expected[0]._n_updates < 18


class AnnealNoise(BaseCallback):
    """Changes the policy during a rollout, and looks at the gradients and steps of updates."""

    def _on_training_start(self):
        self.steps, self.gradients = 0, []
        self.model.policy.optimizer.register_step_post_hook(lambda *_: self.count())

    def count(self):
        self.steps += 1

    def _on_step(self):
        with th.no_grad():
            self.model.policy.log_std.sub_(1e-3)
        return True

    def _on_rollout_start(self):
        self.gradients.append([p.grad.clone() for p in self.model.policy.parameters() if p.grad is not None])


def test_callback_that_looks_into_the_policy_and_the_optimizer():
    results = []
    for cls, kwargs in ((PPO, {}), (PPOClip, {"compile": False})):
        model = cls("MlpPolicy", space_env("box", "box")(), n_steps=26, batch_size=13, n_epochs=2, seed=0, **kwargs)
        callback = AnnealNoise()
        model.learn(156, callback)
        results.append((model.policy.state_dict(), callback.gradients, callback.steps))
    assert equal(*results)
    # 3 updates of 2 epochs of 4 minibatches; the gradients of the last one before each rollout
    assert results[0][2] == 24
    assert [len(gradients) > 0 for gradients in results[0][1]] == [False, True, True]


class InEachStep(BaseCallback):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def _on_step(self):
        self.change(self.model)
        return True


def assign(model):
    weight = model.policy.action_net.weight
    weight.data = 1.01 * weight.data


CHANGES_IN_A_ROLLOUT = {
    "data of log_std": lambda model: model.policy.log_std.data.sub_(0.01),
    "vector of parameters": lambda model: model.policy.load_from_vector(0.99 * model.policy.parameters_to_vector()),
    "data of a weight": assign,
}


@pytest.mark.parametrize("change", CHANGES_IN_A_ROLLOUT)
def test_parameters_may_change_in_a_rollout(change):
    states = []
    for cls, kwargs in ((PPO, {}), (PPOClip, {"compile": False})):
        model = cls("MlpPolicy", space_env("box", "box")(), n_steps=26, batch_size=13, n_epochs=2, seed=0, **kwargs)
        model.learn(104, InEachStep(CHANGES_IN_A_ROLLOUT[change]))
        states.append((model.policy.state_dict(), buffer_arrays(model)))
    assert equal(*states)


def patch(owner, name, change):
    method = getattr(owner, name)

    def patched(*args, **kwargs):
        return change(method(*args, **kwargs))

    setattr(owner, name, patched)


def halve_advantages(model):
    def halve(_):
        model.rollout_buffer.advantages[::2] *= 0.5

    patch(model.rollout_buffer, "compute_returns_and_advantage", halve)


def halve_rewards(model):
    add = model.rollout_buffer.add
    model.rollout_buffer.add = lambda obs, action, reward, *args: add(obs, action, 0.5 * reward, *args)


class Double(th.nn.Flatten):
    def forward(self, observations):
        return 2 * super().forward(observations)


CHANGED_METHODS = {
    "advantages": halve_advantages,
    "add": halve_rewards,
    "get": lambda model: patch(model.rollout_buffer, "get", lambda batches: reversed(list(batches))),
    "forward_actor": lambda model: patch(model.policy.mlp_extractor, "forward_actor", lambda latent: 2 * latent),
    "flatten": lambda model: setattr(model.policy.features_extractor, "flatten", Double()),
    "log_prob": lambda model: patch(model.policy.action_dist, "log_prob", lambda log_prob: 1.1 * log_prob),
    "zero_grad": lambda model: setattr(model.policy.optimizer, "zero_grad", lambda *_: None),
}


@pytest.mark.parametrize("change", CHANGED_METHODS)
def test_changed_methods_are_called(change):
    states = []
    for cls, kwargs in ((PPO, {}), (PPO, {}), (PPOClip, {"compile": False})):
        model = cls("MlpPolicy", space_env("box", "box")(), n_steps=26, batch_size=13, n_epochs=2, seed=0, **kwargs)
        if states:
            CHANGED_METHODS[change](model)
        model.learn(104)
        states.append(model.policy.state_dict())
    unchanged, expected, actual = states
    assert not equal(unchanged, expected)
    assert equal(expected, actual)


CHANGED_CLASSES = {
    "get": (RolloutBuffer, "get", lambda batches: reversed(list(batches))),
    "evaluate_actions": (ActorCriticPolicy, "evaluate_actions", lambda result: (1.5 * result[0], *result[1:])),
    "log_prob": (DiagGaussianDistribution, "log_prob", lambda log_prob: 1.1 * log_prob),
    "rewards": (DummyVecEnv, "step_wait", lambda step: (step[0], 0.5 * step[1], *step[2:])),
    "forward_actor": (MlpExtractor, "forward_actor", lambda latent: 2 * latent),
}


class Descriptor:
    """A method that is no function."""

    def __init__(self, function):
        self.function = function

    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)

    def __get__(self, instance, owner):
        return functools.partial(self.function, instance)


DECORATORS = {
    "function": lambda function: function,
    "no_grad": th.no_grad(),
    "partialmethod": functools.partialmethod,
    "descriptor": Descriptor,
}


@pytest.mark.parametrize(
    ("change", "decorator"),
    [*((change, "function") for change in CHANGED_CLASSES), *(("rewards", decorator) for decorator in DECORATORS)],
)
def test_changed_methods_of_sb3_are_called(change, decorator, monkeypatch):
    """Also where a decorator has left their names as they were."""
    owner, name, what = CHANGED_CLASSES[change]
    method = getattr(owner, name)

    @functools.wraps(method)
    def changed(self, *args, **kwargs):
        return what(method(self, *args, **kwargs))

    states = []
    for cls, kwargs in ((PPO, {}), (PPO, {}), (PPOClip, {"compile": False})):
        if states:
            monkeypatch.setattr(owner, name, DECORATORS[decorator](changed))
        model, _ = train(cls, "MlpPolicy", space_env("box", "box"), **kwargs)
        states.append(model.policy.state_dict())
    unchanged, expected, actual = states
    assert not equal(unchanged, expected)
    assert equal(expected, actual)


class ChangeLogStd(BaseCallback):
    def _on_step(self):
        self.model.policy.log_std.data.sub_(0.05)
        return True


def test_update_that_ends_before_its_first_step():
    states = []
    for cls, kwargs in ((PPO, {}), (PPOClip, {"compile": False})):
        model = cls("MlpPolicy", space_env("box", "box")(), n_steps=26, batch_size=13, target_kl=1e-9, seed=0, **kwargs)
        model.learn(52, ChangeLogStd())
        states.append((model.policy.state_dict(), model.policy.optimizer.state_dict()))
    assert states[0][1]["state"] == {}
    assert equal(*states)


def test_hooks_for_all_modules_and_optimizers_are_called():
    calls = {"step": 0, "forward": 0}

    def count(name):
        calls[name] += 1

    handles = [
        register_optimizer_step_post_hook(lambda *_: count("step")),
        th.nn.modules.module.register_module_forward_hook(lambda *_: count("forward")),
    ]
    try:
        counts = []
        for cls, kwargs in ((PPO, {}), (PPOClip, {"compile": False})):
            before = dict(calls)
            model = cls("MlpPolicy", space_env("box", "box")(), n_steps=26, batch_size=13, n_epochs=2, seed=0, **kwargs)
            model.learn(52)
            counts.append({name: calls[name] - before[name] for name in calls})
    finally:
        for handle in handles:
            handle.remove()
    # 2 epochs of 4 minibatches; train/kl takes passes of its own
    assert counts[0]["step"] == counts[1]["step"] == 8
    assert counts[1]["forward"] >= counts[0]["forward"] > 26


def test_log_std_that_is_a_buffer():
    results = []
    for cls, kwargs in ((PPO, {}), (PPOClip, {"compile": False})):
        model = cls("MlpPolicy", space_env("box", "box")(), n_steps=26, batch_size=13, n_epochs=2, seed=0, **kwargs)
        log_std = model.policy.log_std.detach().clone() - 1
        del model.policy.log_std
        model.policy.register_buffer("log_std", log_std)
        model.policy.optimizer = th.optim.Adam(model.policy.parameters(), lr=3e-4)
        results.append(model.learn(104).policy.state_dict())
    assert equal(*results)


class Cleans(DropoutExtractor):
    """Knows what to do with observations that are missing or infinite."""

    def forward(self, observations):
        return self.layers[0](th.nan_to_num(observations, nan=0.0, posinf=1.0, neginf=-1.0))


class MissingEnv(SpaceEnv):
    def step(self, action):
        observation, *rest = super().step(action)
        observation[self.steps % 5] = np.nan if self.steps % 2 else np.inf
        return observation, *rest


def test_policy_that_cleans_its_observations():
    make = functools.partial(MissingEnv, OBSERVATION_SPACES["box"], ACTION_SPACES["box"])
    make_env = functools.partial(make_vec_env, make, n_envs=2, seed=0)
    kwargs = {"policy_kwargs": {"features_extractor_class": Cleans}}
    assert_same_training(train(PPO, "MlpPolicy", make_env, **kwargs), train(PPOClip, "MlpPolicy", make_env, **kwargs))
    # Without that, it is reported
    kwargs["policy_kwargs"]["features_extractor_class"] = InPlaceExtractor
    with pytest.raises(NonFiniteEnvironmentError, match="observation that is not finite"):
        train(PPOClip, "MlpPolicy", make_env, **kwargs)


def test_policy_that_overwrites_its_input_only_in_the_update():
    make_env = space_env("box", "box")
    kwargs = {"policy_kwargs": {"features_extractor_class": InPlaceExtractor}}
    expected, actual = train(PPO, ClonesInForward, make_env, **kwargs), train(PPOClip, ClonesInForward, make_env, **kwargs)
    assert_same_training(expected, actual)


def test_rollout_that_is_not_full():
    model = PPOClip("MlpPolicy", space_env("box", "box")(), n_steps=26, batch_size=13)
    model.n_steps = 13
    with pytest.raises(ValueError, match="holds 13 of 26 steps"):
        model.learn(26)


def test_modules_with_a_state_of_their_own():
    class Extractor(DropoutExtractor):
        def get_extra_state(self):
            return {"version": 2}

        def set_extra_state(self, state):
            self.state = state

    model, _ = train(PPOClip, "MlpPolicy", space_env("box", "box"), policy_kwargs={"features_extractor_class": Extractor})
    assert model._n_updates == 9
    model.lr_schedule = lambda _: 1e30
    with pytest.raises(FloatingPointError):
        model.learn(52)
    # Undone, with that state
    assert model.policy.features_extractor.state == {"version": 2}


def test_gradients_are_left_as_sb3_leaves_them():
    models = [train(PPO, "MlpPolicy", space_env("box", "box"))[0]]
    models += [train(PPOClip, "MlpPolicy", space_env("box", "box"), compile=False)[0]]
    gradients = [[parameter.grad for parameter in model.policy.parameters()] for model in models]
    assert equal(*gradients)
    assert gradients[0][0].abs().max() > 0


@pytest.mark.parametrize("cls", [PPOClip, PPOFixedKL, PPOKLPen])
def test_arguments_of_sb3(cls):
    theirs, ours = (list(inspect.signature(c).parameters.values()) for c in (PPO, cls))
    assert [p.name for p in ours[: len(theirs)]] == [p.name for p in theirs]
    # What makes a KL variant: no clipping, and in PPOKLPen d_targ
    own = {PPOClip: set(), PPOFixedKL: {"clip_range"}, PPOKLPen: {"clip_range", "target_kl"}}[cls]
    for a, b in zip(theirs, ours, strict=False):
        assert (a.default == b.default) == (a.name not in own), a.name
        assert a.kind == b.kind
    assert all(p.kind == inspect.Parameter.KEYWORD_ONLY for p in ours[len(theirs) :])


def test_custom_policy():
    make_env = space_env("box", "discrete")
    assert_same_training(train(PPO, OwnPolicy, make_env), train(PPOClip, OwnPolicy, make_env, compile=False))


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, SubprocVecEnv])
def test_vec_normalize_and_real_environments(vec_env_cls):
    def make_env():
        return VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, seed=5, vec_env_cls=vec_env_cls))

    kwargs = {"n_steps": 250, "batch_size": 100, "n_epochs": 2}
    expected = train(PPO, "MlpPolicy", make_env, n_updates=2, **kwargs)
    actual = train(PPOClip, "MlpPolicy", make_env, n_updates=2, compile=False, **kwargs)
    assert_same_training(expected, actual)
    statistics = [vars(model.get_vec_normalize_env().obs_rms) for model, _ in (expected, actual)]
    assert equal(*statistics)


def test_fixed_kl_without_penalty_is_clip():
    make_env = space_env("box", "box")
    clip = train(PPOClip, "MlpPolicy", make_env, clip_range=0.15)
    no_penalty = train(PPOFixedKL, "MlpPolicy", make_env, clip_range=0.15, kl_coef=0)
    assert_same_training(clip, no_penalty)
    penalty = train(PPOFixedKL, "MlpPolicy", make_env, clip_range=0.15, kl_coef=1.0)
    assert not equal(clip[0].policy.state_dict(), penalty[0].policy.state_dict())


@pytest.mark.parametrize("clip_range", [None, 0.2])
def test_adaptive_kl_inside_the_band_is_fixed_kl(clip_range):
    make_env = space_env("box", "box")
    kwargs = {"learning_rate": 1e-3, "n_epochs": 5, "clip_range": clip_range}
    fixed = train(PPOFixedKL, "MlpPolicy", make_env, kl_coef=2.0, **kwargs)
    kls = [row["train/kl"] for row in fixed[1] if "train/kl" in row]
    target_kl = (min(kls) * max(kls)) ** 0.5
    assert max(kls) < 1.5 * target_kl, "the band is too narrow for this test"
    adaptive = train(PPOKLPen, "MlpPolicy", make_env, init_kl_coef=2.0, target_kl=target_kl, **kwargs)
    assert_same_training(fixed, adaptive)
    assert adaptive[0].kl_coef == 2.0
    # And outside the band it is not
    other = train(PPOKLPen, "MlpPolicy", make_env, init_kl_coef=2.0, target_kl=100 * target_kl, **kwargs)
    assert not equal(fixed[0].policy.state_dict(), other[0].policy.state_dict())


@pytest.mark.parametrize("cls", [PPOClip, PPOFixedKL, PPOKLPen])
def test_same_seed_same_training(cls):
    make_env = space_env("box", "box")
    assert_same_training(train(cls, "MlpPolicy", make_env), train(cls, "MlpPolicy", make_env))
    other = train(cls, "MlpPolicy", make_env, seed=4)
    assert not equal(train(cls, "MlpPolicy", make_env)[0].policy.state_dict(), other[0].policy.state_dict())
