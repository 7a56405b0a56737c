"""Rollouts of policies that see a vector in NumPy are the policy's: its values, log probabilities and distribution."""

import copy
import functools

import numpy as np
import pytest
import torch as th
from compiled_support import needs_new_torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.vec_env import DummyVecEnv
from support import (
    ACTION_SPACES,
    OBSERVATION_SPACES,
    POLICIES,
    InEachRollout,
    InEachStep,
    LinearExtractor,
    SpaceEnv,
    make_model,
    make_policy,
    space_env,
)
from torch.utils import _pytree as pytree

from sb3_ppo_variants import NonFiniteEnvironmentError, NonFinitePolicyError
from sb3_ppo_variants.compiled.numpy_policy import OF_TORCH, NumpyPolicy, encoder

pytestmark = [needs_new_torch, pytest.mark.usefixtures("interpreted")]


class KeepRollout(BaseCallback):
    """What the policy was given and gave, as callbacks see it."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def _on_step(self):
        names = ("obs_tensor", "actions", "values", "log_probs")
        self.steps.append([pytree.tree_map(lambda x: th.as_tensor(x).clone(), self.locals[name]) for name in names])
        return True

    def tensors(self):
        return pytree.tree_map(lambda *tensors: th.cat(tensors), *self.steps)


def numpy_model(action="box", n_envs=2, space=OBSERVATION_SPACES["box"], **kwargs):
    make = functools.partial(SpaceEnv, space, ACTION_SPACES[action])
    return make_model(env=make_vec_env(make, n_envs, seed=0), compile=True, **{"n_epochs": 1, **kwargs})


@pytest.mark.parametrize(
    ("architecture", "observation", "action", "n_envs"),
    [
        ({}, "float64", "box", 1),
        ({"activation_fn": th.nn.ReLU, "net_arch": [16, 24, 8]}, "float64", "discrete", 3),
        ({"net_arch": []}, "float64", "box", 2),
        ({"activation_fn": th.nn.ELU}, "float64", "box", 2),
        ({"activation_fn": th.nn.ReLU, "net_arch": {"pi": [32, 8], "vf": [16, 48]}}, "float64", "box", 3),
        ({}, "box", "multidiscrete", 2),
        ({}, "box", "matrix", 2),
        ({}, "discrete", "discrete", 1),
        ({}, "multidiscrete", "box", 3),
        ({}, "parts", "box", 1),
        ({"share_features_extractor": False}, "parts", "multidiscrete", 3),
    ],
)
def test_rollouts_are_the_policys(architecture, observation, action, n_envs, monkeypatch):
    acting = []
    act = NumpyPolicy.act
    monkeypatch.setattr(NumpyPolicy, "act", lambda self, *inputs: acting.append(self) or act(self, *inputs))
    space = OBSERVATION_SPACES.get(observation, spaces.Box(-1, 1, (5,), np.float64))
    model = numpy_model(action, n_envs, space, policy=POLICIES.get(observation, "MlpPolicy"), policy_kwargs=architecture)
    policy, callback = copy.deepcopy(model.policy), KeepRollout()
    with th.no_grad():
        for tensor in (policy.action_net.weight, model.policy.action_net.weight):
            # Actions that depend on the observation
            tensor.mul_(100)
    model.learn(26 * n_envs, callback)
    assert len(acting) == 26
    obs, actions, values, log_probs = callback.tensors()
    if action == "matrix":
        actions = actions.flatten(1)
    with th.no_grad():
        expected_values, expected_log_probs, _ = policy.evaluate_actions(obs, actions)
    assert expected_values.std() > 0.05
    assert th.allclose(values, expected_values, atol=1e-6)
    assert th.allclose(log_probs, expected_log_probs, atol=1e-4)
    buffer = model.rollout_buffer
    for array, tensor in ((buffer.values, values), (buffer.log_probs, log_probs)):
        # Flattened by the update: first all steps of the first environment
        np.testing.assert_array_equal(array.ravel(), tensor.view(26, n_envs).T.reshape(-1).numpy())


def test_other_policies_act_themselves(monkeypatch):
    others = [
        make_policy(net_arch={"pi": [8], "vf": [8, 8]}),
        make_policy(net_arch={"vf": [8]}),
        # Not of each number by itself
        make_policy(activation_fn=functools.partial(th.nn.Softmax, dim=1)),
        make_policy(features_extractor_class=LinearExtractor),
        make_policy(type("OwnClass", (ActorCriticPolicy,), {})),
        make_policy(use_sde=True),
        make_policy(action="multibinary"),
        make_policy(MultiInputActorCriticPolicy, "dict"),
        # Scaled by SB3
        make_policy(observation="image"),
    ]
    assert [NumpyPolicy.supports(policy) for policy in [make_policy(), *others]] == [True] + [False] * 9
    monkeypatch.setattr(NumpyPolicy, "act", None)
    model = make_model(env=space_env("image", "box")(), policy="CnnPolicy", compile=True, n_epochs=1).learn(52)
    assert model._uses_compiled


@pytest.mark.parametrize("activation", OF_TORCH)
def test_activations_of_torch(activation):
    policy = make_policy(activation_fn=activation)
    with th.no_grad():
        policy.value_net.weight.mul_(10)
    observations = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    acting = NumpyPolicy(policy, RolloutBuffer(1, policy.observation_space, policy.action_space, n_envs=2))
    expected = policy.predict_values(th.as_tensor(observations))
    assert expected.std() > 0.01
    assert th.allclose(acting.act(observations).values, expected, atol=1e-5)


def test_activations_must_be_the_same():
    policy = make_policy(activation_fn=th.nn.ELU)
    policy.mlp_extractor.value_net[1] = th.nn.ELU(alpha=2.0)
    assert not NumpyPolicy.supports(policy)


@pytest.mark.parametrize("dtype", [bool, np.float32, np.int8])
def test_discrete_observations_of_any_type(dtype):
    observations = np.array([1, 0, 1]).astype(dtype)
    expected = preprocess_obs(th.as_tensor(observations), spaces.Discrete(2)).numpy()
    np.testing.assert_array_equal(encoder(spaces.Discrete(2))(observations), expected)


@pytest.mark.parametrize(
    ("space", "index", "wrong"),
    [(spaces.Discrete(4), [2, -1], -1), (spaces.Discrete(4), [4, 0], 4), (spaces.MultiDiscrete([2, 3]), [[0, 1], [1, 3]], 3)],
)
def test_observations_that_are_not_in_a_space(space, index, wrong):
    with pytest.raises(ValueError, match=f"an observation of {wrong}, which is not in {type(space).__name__}"):
        encoder(space)(np.array(index))


def test_many_discrete_observations_take_little_memory():
    """A table of all of them would be 4 TB."""
    found = encoder(spaces.Discrete(1_000_000))(np.array([999_999]))
    assert found.sum() == found[0, -1] == 1


def test_parts_replaced_in_a_supported_policy_are_seen():
    model = numpy_model()
    assert NumpyPolicy.supports(model.policy)
    model.policy.mlp_extractor.value_net[1] = th.nn.ReLU()
    assert not NumpyPolicy.supports(model.policy)
    model.policy.mlp_extractor.policy_net[1] = th.nn.ReLU()
    assert NumpyPolicy.supports(model.policy)
    model.policy.action_net = th.nn.Linear(64, 3, bias=False)
    assert not NumpyPolicy.supports(model.policy)
    model = numpy_model()
    model.policy.value_net.register_forward_hook(lambda *_: None)
    assert not NumpyPolicy.supports(model.policy)


@pytest.mark.parametrize("action", ["box", "discrete"])
def test_distribution_of_the_actions(action):
    n_steps = 4000
    model = numpy_model(action, 1, n_steps=n_steps, batch_size=n_steps)
    with th.no_grad():
        model.policy.action_net.weight.mul_(100)
        if action == "box":
            model.policy.log_std[:] = th.tensor([-1.0, 0.0, 0.5])
    observation = np.full((1, 5), 0.5, np.float32)
    policy = NumpyPolicy(model.policy, model.rollout_buffer)
    actions = np.concatenate([policy.act(observation).actions for _ in range(n_steps)])
    distribution = model.policy.get_distribution(th.as_tensor(observation)).distribution
    # Four standard errors: 1 / sqrt(n) of the mean of standard normal noise, 1 / sqrt(2 n) of its deviation, 1 / sqrt(n) of a
    # correlation, and at most 0.5 / sqrt(n) of a frequency
    if action == "box":
        noise = (actions - distribution.mean.detach().numpy()) / distribution.stddev.detach().numpy()
        assert np.abs(noise.mean(axis=0)).max() < 4 / np.sqrt(n_steps)
        assert np.abs(noise.std(axis=0) - 1).max() < 4 / np.sqrt(2 * n_steps)
        assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 4 / np.sqrt(n_steps)
        # Of a standard normal, 68.27 % lie within one deviation
        assert np.abs((np.abs(noise) < 1).mean() - 0.6827) < 4 * 0.4654 / np.sqrt(3 * n_steps)
    else:
        probs = distribution.probs.detach().numpy()[0]
        assert np.ptp(probs) > 0.1
        frequencies = np.bincount(actions, minlength=3) / n_steps
        assert np.abs(frequencies - probs).max() < 4 * 0.5 / np.sqrt(n_steps)


def test_changed_parameters_count_in_the_next_rollout_and_a_probability_may_become_zero():
    """Also where NumPy has been told to raise errors."""
    model = numpy_model("discrete", learning_rate=0.0)
    for bias in (0.0, -100.0):
        with th.no_grad():
            model.policy.action_net.bias[0] = bias
        policy, callback = copy.deepcopy(model.policy), KeepRollout()
        anneal = InEachStep(lambda model: model.policy.action_net.bias.data.sub_(0.01))
        with np.errstate(all="raise"):
            model.learn(52, [anneal, callback], reset_num_timesteps=False)
        obs, actions, _, log_probs = callback.tensors()
        with th.no_grad():
            assert th.allclose(log_probs, policy.evaluate_actions(obs, actions)[1], atol=1e-5)
        assert (actions == 0).any() == (bias == 0)


def test_policy_that_is_not_finite_does_not_act():
    def spoil(model):
        if model.num_timesteps == 52:
            model.policy.action_net.weight.data[0, 0] = np.nan

    model = numpy_model()
    with pytest.raises(NonFinitePolicyError, match=r"policy\.action_net\.weight"):
        model.learn(104, InEachRollout(spoil))
    assert model.num_timesteps == 52


@pytest.mark.parametrize(("dtype", "number"), [("float32", np.nan), ("float64", np.inf)])
def test_observations_that_are_not_finite_are_found_at_once(dtype, number):
    class Broken(SpaceEnv):
        def step(self, action):
            obs, *others = super().step(action)
            if self.steps == 5:
                obs[:] = number
            return obs, *others

    env = DummyVecEnv([lambda: Broken(spaces.Box(-1, 1, (5,), dtype), ACTION_SPACES["box"])] * 2)
    model = make_model(env=env, compile=True)
    with pytest.raises(NonFiniteEnvironmentError, match=rf"not finite: observation\[0, 0\] = {number}"):
        model.learn(52)
    assert model.num_timesteps == 10
