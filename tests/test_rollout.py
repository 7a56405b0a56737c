"""The rollout: what reaches the environment and the buffer, whose fault NaN is, and pi_old."""

import copy
import weakref

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from support import (
    ACTION_SPACES,
    OBSERVATION_SPACES,
    DropoutExtractor,
    InEachRollout,
    LinearExtractor,
    OwnNetworks,
    SpaceEnv,
    equal,
    make_model,
    space_env,
    train,
    with_extractor,
)

from sb3_ppo_variants import (
    AdaptiveLearningRate,
    NonFiniteEnvironmentError,
    NonFinitePolicyError,
    NonFiniteUpdateError,
    PPOClip,
    PPOFixedKL,
    PPOKLPen,
    policies,
)
from sb3_ppo_variants.kinds import kind_of
from sb3_ppo_variants.kl import kl_from_parameters
from sb3_ppo_variants.rollout import KL_STRIDE, Rollout


class Bounded(SpaceEnv):
    """A battery that can only give what it holds: its bounds change in place at each step."""

    def step(self, action):
        self.seen.append((action.copy(), self.action_space.low.copy(), self.action_space.high.copy()))
        self.action_space.high[:] = 0.05 + 0.1 * self.np_random.random(3)
        self.action_space.low[:] = -self.action_space.high / 2
        return super().step(action)


def test_bounds_of_actions_are_those_of_the_moment(fast):
    env = Bounded(OBSERVATION_SPACES["box"], ACTION_SPACES["box"])
    env.seen = []
    model = make_model(env=env, n_steps=32, batch_size=32).learn(64)
    assert len(env.seen) == 64
    assert all((low <= action).all() and (action <= high).all() for action, low, high in env.seen)
    # The bounds matter
    assert np.abs(model.rollout_buffer.actions).max() > 1
    assert sum((action == high).any() for action, _, high in env.seen) > 32


@pytest.mark.parametrize(
    ("action", "layer"),
    [("box", "action_net"), ("box", "value_net"), ("discrete", "action_net"), ("multibinary", "action_net")],
)
def test_nan_in_the_policy_stops_before_an_action_is_taken(action, layer, fast):
    model = make_model(env=space_env("box", action)(), compile=False).learn(52)
    getattr(model.policy, layer).bias.data[0] = np.nan
    actions = []
    model.env.step_async = actions.append
    for env in model.env.envs:
        env.step = actions.append
    with pytest.raises(NonFinitePolicyError, match=rf"these parameters are not finite: policy\.{layer}\.bias\. No action"):
        model.learn(52)
    assert actions == []


class BrokenEnv(SpaceEnv):
    """Returns a bad number in one step."""

    def __init__(self, observation=None, reward=None, dict_space=False, at=40):
        space = OBSERVATION_SPACES["box"]
        super().__init__(spaces.Dict({"speed": space}) if dict_space else space, ACTION_SPACES["box"])
        self.bad_observation, self.bad_reward, self.countdown = observation, reward, at

    def step(self, action):
        observation, reward, *rest = super().step(action)
        self.countdown -= 1
        if self.countdown == 0 and self.bad_observation is not None:
            (observation["speed"] if isinstance(observation, dict) else observation)[1] = self.bad_observation
        if self.countdown == 0 and self.bad_reward is not None:
            reward = self.bad_reward
        return observation, reward, *rest


NAN, INF = float("nan"), float("inf")
BAD_OBSERVATION = r"observation that is not finite: observation\[.*1\] = "


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"observation": NAN}, BAD_OBSERVATION + "nan"),
        ({"observation": INF, "dict_space": True}, r"not finite: speed\[.*1\] = inf"),
        ({"reward": -INF}, "reward that is not finite: -inf at step 7 of the rollout in environment 0"),
        # The last observation of an episode, of 13 steps, that the time limit ends
        ({"observation": NAN, "at": 39}, BAD_OBSERVATION + "nan"),
        # The observation after the last step of a rollout
        ({"observation": NAN, "at": 64}, BAD_OBSERVATION + "nan"),
    ],
)
def test_environment_with_bad_numbers(kwargs, match, fast, tmp_path):
    policy = "MultiInputPolicy" if "dict_space" in kwargs else "MlpPolicy"
    model = make_model(policy=policy, env=BrokenEnv(**kwargs), n_steps=32, batch_size=16, n_epochs=1)
    with pytest.raises(NonFiniteEnvironmentError, match=match):
        model.learn(64)
    # The first rollout has trained the model, which is still good
    assert model._n_updates == 1
    assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())
    model.save(tmp_path / "model")


class OfAUser(ActorCriticPolicy):
    """With a class of its own."""


class Saturates(LinearExtractor):
    def forward(self, observations):
        return th.tanh(super().forward(observations))


class Looks(Saturates):
    """Cannot be called with what is not finite."""

    def forward(self, observations):
        return super().forward(observations) + th.eye(8)[observations[:, 1].round().long().clamp(max=0) + 1]


@pytest.mark.parametrize(("extractor", "at"), [(Saturates, 20), (Looks, 26)])
def test_bad_observations_of_a_custom_policy(extractor, at):
    """In the midst of a rollout and at its end."""
    model = make_model(policy=OfAUser, env=BrokenEnv(observation=NAN, at=at), **with_extractor(extractor))
    with pytest.raises(NonFiniteEnvironmentError, match=BAD_OBSERVATION + "nan"):
        model.learn(64)
    assert model._n_updates == 0


def test_infinite_observation_of_which_a_custom_policy_makes_finite_numbers():
    """The tanh of infinity is finite, but the layer before it cannot learn from it."""
    model = make_model(policy=OfAUser, env=BrokenEnv(observation=INF, at=20), **with_extractor(Saturates))
    before = copy.deepcopy(model.policy.state_dict())
    with pytest.raises(NonFiniteUpdateError):
        model.learn(64)
    assert equal(model.policy.state_dict(), before)


def test_callbacks_see_the_locals_of_sb3(fast):
    def seen(cls):
        """Names and types in the steps."""
        found = {}
        make_model(cls).learn(104, lambda locals_, _: found.update({name: type(x) for name, x in locals_.items()}) is None)
        return found

    expected = seen(PPO)
    names = {"obs_tensor", "actions", "values", "log_probs", "clipped_actions", "infos", "dones", "terminal_value"}
    assert names <= expected.keys()
    assert expected.items() - {("self", PPO)} <= seen(PPOClip).items()


def test_callback_ends_the_training():
    model = make_model(PPOKLPen, compile=False).learn(INF, lambda locals_, _: locals_["self"].num_timesteps < 60)
    # One update of two epochs
    assert (model.num_timesteps, model._n_updates) == (60, 2)


def one_rollout(policy="MlpPolicy", observation="box", **kwargs):
    return train(PPOClip, policy, space_env(observation, "box"), n_updates=1, n_epochs=1, compile=False, **kwargs)[0]


def test_pi_old_is_that_of_the_start_of_the_update():
    model = one_rollout()
    model.policy.action_net.weight.data.mul_(50)
    old = Rollout(model.rollout_buffer, kind_of(model.policy))
    assert old.mean_kl() == 0
    observations = old.data.observations
    mean, std = old.data.old_parameters
    with th.no_grad():
        th.testing.assert_close(mean, model.policy.get_distribution(observations).distribution.mean)
        model.policy.action_net.bias.add_(0.5)
    # Each of 3 means is off by half a standard deviation: 3 * 0.5^2 / 2
    th.testing.assert_close(std, th.ones_like(std), rtol=0.02, atol=0)
    assert old.mean_kl() == pytest.approx(0.375, rel=0.05)


@pytest.mark.parametrize("needs_kl", [False, True])
def test_kl_that_is_only_logged_is_that_of_some_of_the_images(needs_kl):
    model = one_rollout("CnnPolicy", "image")
    old = Rollout(model.rollout_buffer, kind_of(model.policy), needs_kl=needs_kl)
    (measured,) = old.measured
    # 52 states, or every 8th
    assert KL_STRIDE == 8
    assert len(measured.observations) == len(measured.old_parameters[0]) == (52 if needs_kl else 7)
    assert th.equal(measured.observations, old.data.observations[:: 1 if needs_kl else 8])
    assert (old.data.old_parameters == ()) == (not needs_kl)
    with th.no_grad():
        model.policy.action_net.bias.add_(0.5)
    assert old.mean_kl() == pytest.approx(0.375, rel=0.05)


@pytest.mark.parametrize(("learning_rate", "needs_kl"), [(3e-4, False), (AdaptiveLearningRate(), True)])
def test_step_size_goes_by_the_kl_of_all_images(learning_rate, needs_kl):
    model = make_model(PPOClip, "CnnPolicy", space_env("image", "box")(), learning_rate=learning_rate, compile=False)
    assert model._needs_kl() == needs_kl


def test_kl_that_is_only_logged_is_that_of_some_of_the_images_of_a_custom_buffer():
    own_buffer = type("OwnBuffer", (RolloutBuffer,), {})
    model = one_rollout("CnnPolicy", "image", rollout_buffer_class=own_buffer)
    old = Rollout(model.rollout_buffer, kind_of(model.policy), needs_kl=False)
    with th.no_grad():
        model.policy.action_net.bias.add_(0.5)
    batches = list(old.epoch(20))
    assert [(len(batch.observations), batch.old_parameters) for batch in batches] == [(20, ()), (20, ()), (12, ())]
    assert [len(measured.observations) for measured in old.measured] == [3, 3, 2]
    assert th.equal(old.measured[1].observations, batches[1].observations[::8])
    # Of pi_old, not of the policy in the meantime
    assert old.mean_kl() == pytest.approx(0.375, rel=0.05)


def test_parts_of_a_rollout_are_copied_one_at_a_time(monkeypatch):
    monkeypatch.setattr(policies, "CHUNK_SIZE", 10)
    model = one_rollout("CnnPolicy", "image")
    kind = kind_of(model.policy)
    copies, alive = [], []

    def get_distribution(observations):
        copies.append(weakref.ref(observations))
        alive.append(sum(copy() is not None for copy in copies))
        return type(model.policy).get_distribution(model.policy, observations)

    monkeypatch.setattr(model.policy, "get_distribution", get_distribution)
    Rollout(model.rollout_buffer, kind)
    # 52 samples
    assert alive == [1] * 6


def test_measuring_the_kl_leaves_no_trace():
    model = one_rollout(**with_extractor(DropoutExtractor))
    before = copy.deepcopy(model.policy.state_dict()), th.get_rng_state(), np.random.get_state()[1]
    old = Rollout(model.rollout_buffer, kind_of(model.policy))
    # Without dropout: the policy is in evaluation mode
    assert old.mean_kl() == 0
    assert equal(before, (model.policy.state_dict(), th.get_rng_state(), np.random.get_state()[1]))
    assert model.policy.training


def test_pi_old_is_that_of_the_observations_in_the_buffer():
    """A callback may change them before they are learned from."""
    halve = InEachRollout(lambda model: np.multiply(buffer.observations, 0.5, out=buffer.observations), at_end=True)
    model = make_model(PPOFixedKL, learning_rate=0.0)
    buffer = model.rollout_buffer
    model.policy.action_net.weight.data.mul_(100)
    model.learn(1, halve)
    assert model.logger.name_to_value["train/kl"] == pytest.approx(0, abs=1e-6)


def test_custom_buffers_have_the_same_kl():
    """Also where updates end early: the KL is that over all samples, although the last epoch sees some of them only."""
    own_buffer = type("OwnBuffer", (RolloutBuffer,), {})
    kwargs = {"n_steps": 130, "n_epochs": 10, "learning_rate": 1e-3, "target_kl": 0.005, "n_updates": 2}
    (own, own_rows), (_, rows) = (train(PPOFixedKL, rollout_buffer_class=buffer, **kwargs) for buffer in (own_buffer, None))
    assert 2 < own._n_updates < 2 * 10
    kl, expected = ([row["train/kl"] for row in some if "train/kl" in row] for some in (own_rows, rows))
    assert len(expected) == 2
    np.testing.assert_allclose(kl, expected, rtol=1e-3)


class Warm(ActorCriticPolicy):
    """Says that it acts with a larger deviation than it does."""

    def get_distribution(self, obs):
        distribution = super().get_distribution(obs)
        normal = distribution.distribution
        distribution.distribution = th.distributions.Normal(normal.mean, 2 * normal.stddev)
        return distribution


@pytest.mark.filterwarnings("ignore:The log probabilities of the actions in the rollout")
def test_penalty_and_kl_are_of_the_same_distributions():
    model = make_model(policy=Warm).learn(52)
    old = Rollout(model.rollout_buffer, kind_of(model.policy))
    form = old.kind.evaluate(old.data).closed_form()
    # pi is pi_old
    assert kl_from_parameters(old.data.old_parameters, form).abs().max() == 0


@pytest.mark.parametrize(("policy", "is_warned"), [(OwnNetworks, True), (OfAUser, False)])
def test_warning_of_policies_that_act_otherwise_than_they_say(policy, is_warned, recwarn):
    model = make_model(policy=policy)
    model.policy.action_net.weight.data.mul_(50)
    model.learn(104)
    messages = [str(warning.message) for warning in recwarn]
    # Once, not in each of two updates
    assert len(messages) == is_warned
    assert all("are not those of policy.get_distribution(observations)" in message for message in messages)
