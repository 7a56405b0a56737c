import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import ACTION_SPACES, OBSERVATION_SPACES, SpaceEnv
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.callbacks import BaseCallback, EveryNTimesteps
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from test_parity import equal

from sb3_ppo_variants import NonFiniteEnvironmentError, NonFiniteUpdateError, PPOClip, PPOFixedKL, PPOKLPen

ALGORITHMS = [PPOClip, PPOFixedKL, PPOKLPen]

OUT_OF_RANGE = [
    ("learning_rate", -1e-3, ValueError),
    ("learning_rate", "fast", TypeError),
    ("n_steps", 0, ValueError),
    ("n_steps", 2.5, TypeError),
    ("batch_size", 0, ValueError),
    ("batch_size", 1, ValueError),
    ("batch_size", None, TypeError),
    ("n_epochs", 0, ValueError),
    ("n_epochs", True, TypeError),
    ("gamma", 1.5, ValueError),
    ("gamma", -0.1, ValueError),
    ("gae_lambda", float("nan"), ValueError),
    ("gae_lambda", "0.9", TypeError),
    ("clip_range", 0.0, ValueError),
    ("clip_range", -0.2, ValueError),
    ("clip_range", float("nan"), ValueError),
    ("clip_range", [0.2], TypeError),
    ("clip_range_vf", 0, ValueError),
    ("ent_coef", float("nan"), ValueError),
    ("ent_coef", "auto", TypeError),
    ("vf_coef", -0.5, ValueError),
    ("vf_coef", None, TypeError),
    ("max_grad_norm", 0, ValueError),
    ("max_grad_norm", -1, ValueError),
    ("use_sde", "yes", TypeError),
    ("sde_sample_freq", 1.5, TypeError),
    ("sde_sample_freq", -5, ValueError),
    ("policy_kwargs", [1], TypeError),
    ("seed", "a", TypeError),
    ("stats_window_size", 0, ValueError),
    ("target_kl", 0.0, ValueError),
    ("target_kl", -0.01, ValueError),
    ("normalize_advantage", "rollout", ValueError),
    ("normalize_advantage", 1, ValueError),
    ("compile", "fast", ValueError),
    ("compile", 1, ValueError),
]


@pytest.mark.parametrize("cls", ALGORITHMS)
@pytest.mark.parametrize(("name", "value", "error"), OUT_OF_RANGE)
def test_out_of_range(cls, name, value, error):
    with pytest.raises(error, match=name) as raised:
        cls("MlpPolicy", "Pendulum-v1", **{name: value})
    assert str(value) in str(raised.value)


@pytest.mark.parametrize(
    ("cls", "name", "value", "error"),
    [
        (PPOClip, "clip_range", None, TypeError),
        (PPOFixedKL, "kl_coef", -1.0, ValueError),
        (PPOFixedKL, "kl_coef", float("inf"), ValueError),
        (PPOFixedKL, "kl_coef", None, TypeError),
        (PPOKLPen, "target_kl", None, TypeError),
        (PPOKLPen, "init_kl_coef", 0.0, ValueError),
        (PPOKLPen, "init_kl_coef", 1e7, ValueError),
        (PPOKLPen, "init_kl_coef", "1", TypeError),
        (PPOKLPen, "kl_coef_bounds", (1.0, 0.5), ValueError),
        (PPOKLPen, "kl_coef_bounds", (0.0, 10.0), ValueError),
        (PPOKLPen, "kl_coef_bounds", 10.0, TypeError),
        (PPOKLPen, "kl_coef_bounds", (0.1, None), TypeError),
    ],
)
def test_own_arguments(cls, name, value, error):
    with pytest.raises(error, match=name):
        cls("MlpPolicy", "Pendulum-v1", **{name: value})


@pytest.mark.parametrize("cls", ALGORITHMS)
def test_unknown_argument(cls):
    with pytest.raises(TypeError, match="clip_rnage"):
        cls("MlpPolicy", "Pendulum-v1", clip_rnage=0.2)


def test_schedule_that_goes_bad_is_named_before_the_update():
    model = PPOFixedKL("MlpPolicy", "Pendulum-v1", n_steps=64, kl_coef=lambda progress: 0.5 - progress)
    with pytest.raises(ValueError, match=r"kl_coef \(at remaining progress 1\) must be at least 0"):
        model.kl_coef  # noqa: B018
    model = PPOClip("MlpPolicy", "Pendulum-v1", n_steps=64, ent_coef=lambda _: float("nan"))
    with pytest.raises(ValueError, match=r"ent_coef .* must be finite, but is nan"):
        model.learn(64)
    with pytest.raises(ValueError, match="kl_coef must be at least 0, but is -2"):
        PPOFixedKL("MlpPolicy", "Pendulum-v1").kl_coef = -2.0
    klpen = PPOKLPen("MlpPolicy", "Pendulum-v1", n_steps=64, kl_coef_bounds=(0.5, 2))
    for beta in (-2.0, 0.4, 2.5):
        with pytest.raises(ValueError, match=rf"kl_coef must be between 0\.5 and 2, but is {beta}"):
            klpen.kl_coef = beta
    klpen.kl_coef = 2
    assert klpen.kl_coef == 2.0
    klpen.target_kl = -1.0
    with pytest.raises(ValueError, match="target_kl must be at least 0, but is -1"):
        klpen.learn(64)
    model = PPOClip("MlpPolicy", "Pendulum-v1", n_steps=64, learning_rate=lambda progress: 1e-3 if progress == 1 else np.nan)
    with pytest.raises(ValueError, match=r"learning_rate \(at remaining progress 0\) must be finite, but is nan"):
        model.learn(64)
    assert model._n_updates == 0
    # The model can be trained on
    assert model.policy.optimizer.param_groups[0]["lr"] == 1e-3
    for name, value, error in (
        ("clip_range", -0.2, ValueError),
        ("clip_range", "a", TypeError),
        ("target_kl", -1, ValueError),
    ):
        klpen = PPOKLPen("MlpPolicy", "Pendulum-v1", n_steps=64, **{name: lambda _, value=value: value})
        with pytest.raises(error, match=rf"{name} \(at remaining progress 0\) must .* but is .*{value}"):
            klpen.learn(64)
        assert klpen._n_updates == 0


@pytest.mark.parametrize("total_timesteps", [-1, float("nan"), -float("inf")])
def test_total_timesteps(total_timesteps):
    with pytest.raises(ValueError, match="total_timesteps"):
        PPOClip("MlpPolicy", "Pendulum-v1").learn(total_timesteps)


def test_training_until_a_callback_ends_it():
    model = PPOClip("MlpPolicy", "Pendulum-v1", n_steps=32, batch_size=32)
    model.learn(float("inf"), callback=EveryNTimesteps(64, StopTraining()))
    assert model.num_timesteps == 64


class StopTraining(BaseCallback):
    def _on_step(self):
        return False


def test_numbers_of_numpy():
    kwargs = {"learning_rate": np.float32(0.25), "clip_range": np.float32(0.5), "clip_range_vf": np.int64(1)}
    model = PPOClip("MlpPolicy", "Pendulum-v1", n_steps=32, batch_size=32, **kwargs)
    assert (model.lr_schedule(1), model.clip_range(1), model.clip_range_vf(1)) == (0.25, 0.5, 1)


def test_clip_range_may_be_assigned():
    model = PPOClip("MlpPolicy", "Pendulum-v1", n_steps=32, batch_size=32)
    model.clip_range = 0.125
    assert model.coefficients()["clip_range"] == 0.125
    model.clip_range = -1
    with pytest.raises(ValueError, match=r"clip_range must be at least 0\.0, but is -1"):
        model.learn(32)


def test_recurrent_models_are_those_of_another_algorithm(tmp_path):
    RecurrentPPO("MlpLstmPolicy", "Pendulum-v1", n_steps=8, batch_size=8).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"policy must be an ActorCriticPolicy, .*RecurrentActorCriticPolicy"):
        PPOClip.load(tmp_path / "model")
    with pytest.raises(ValueError, match=r"policy must be an ActorCriticPolicy, .*RecurrentActorCriticPolicy"):
        PPOClip(RecurrentActorCriticPolicy, "Pendulum-v1")


class LastIsMissing(SpaceEnv):
    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation * np.float32("nan") if truncated else observation, reward, terminated, truncated, info


def test_last_observation_that_is_missing():
    env = LastIsMissing(OBSERVATION_SPACES["box"], ACTION_SPACES["box"])
    with pytest.raises(NonFiniteEnvironmentError, match=r"observation that is not finite: observation\[0\] = nan"):
        PPOClip("MlpPolicy", env, n_steps=32, batch_size=32).learn(32)


def test_log_interval():
    with pytest.raises(ValueError, match="log_interval must not be 0"):
        PPOClip("MlpPolicy", "Pendulum-v1").learn(64, log_interval=0)


@pytest.mark.parametrize("cls", ALGORITHMS)
def test_spaces_and_policies(cls):
    with pytest.raises(ValueError, match="Text"):
        cls("MlpPolicy", SpaceEnv(OBSERVATION_SPACES["box"], spaces.Text(3)))
    with pytest.raises(ValueError, match="finite"):
        cls("MlpPolicy", SpaceEnv(OBSERVATION_SPACES["box"], spaces.Box(-np.inf, np.inf, (2,))))
    with pytest.raises(ValueError, match="NoPolicy"):
        cls("NoPolicy", "Pendulum-v1")
    with pytest.raises(ValueError, match="policy must be an ActorCriticPolicy"):
        cls(th.nn.Linear, "Pendulum-v1")
    with pytest.raises(ValueError, match="policy is for dictionaries of observations, but those of env are Box"):
        cls("MultiInputPolicy", "Pendulum-v1")
    with pytest.raises(ValueError, match=r"cannot be built: .* NatureCNN only with images"):
        cls("CnnPolicy", "Pendulum-v1")
    with pytest.raises(
        ValueError,
        match="cannot be built: squash_output=True is only available when using gSDE",
    ):
        cls("MlpPolicy", "Pendulum-v1", policy_kwargs={"squash_output": True})
    with pytest.raises(TypeError, match=r"rollout_buffer_kwargs must be of type dict, but is \[1\]"):
        cls("MlpPolicy", "Pendulum-v1", rollout_buffer_kwargs=[1])
    with pytest.raises(ValueError, match=r"env must be .* but is None"):
        cls("MlpPolicy", None)
    with pytest.raises(gym.error.NameNotFound, match="NoEnv"):
        cls("MlpPolicy", "NoEnv-v0")


@pytest.mark.parametrize("cls", ALGORITHMS)
@pytest.mark.parametrize("normalize_advantage", [True, "batch"])
def test_one_sample_per_rollout(cls, normalize_advantage):
    with pytest.raises(ValueError, match=r"n_steps \* n_envs = 1 \* 1 = 1"):
        cls("MlpPolicy", "Pendulum-v1", n_steps=1, normalize_advantage=normalize_advantage)


@pytest.mark.parametrize("cls", ALGORITHMS)
def test_one_sample_per_rollout_without_normalization(cls):
    model = cls("MlpPolicy", "Pendulum-v1", n_steps=1, batch_size=1, normalize_advantage=False, seed=0).learn(5)
    assert model._n_updates == 50


@pytest.mark.parametrize("cls", ALGORITHMS)
def test_truncated_minibatch_is_announced(cls):
    with pytest.warns(UserWarning, match="truncated to 36 samples") as raised:
        cls("MlpPolicy", "Pendulum-v1", n_steps=100)
    # Where the user has to change something
    assert raised[0].filename == __file__


class BrokenEnv(SpaceEnv):
    """Returns a bad number in its 40th step."""

    def __init__(self, observation=None, reward=None, dict_space=False):
        space = OBSERVATION_SPACES["box"]
        super().__init__(spaces.Dict({"speed": space}) if dict_space else space, spaces.Box(-1, 1, (2,)))
        self.bad_observation, self.bad_reward, self.total_steps = observation, reward, 0

    def step(self, action):
        observation, reward, *rest = super().step(action)
        self.total_steps += 1
        if self.total_steps == 40 and self.bad_observation is not None:
            values = observation["speed"] if isinstance(observation, dict) else observation
            values[1] = self.bad_observation
        if self.total_steps == 40 and self.bad_reward is not None:
            reward = self.bad_reward
        return observation, reward, *rest


# SB3's buffer computes advantages of the infinite reward before it is found
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("cls", ALGORITHMS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_environment_with_bad_numbers(cls, value, tmp_path):
    def check(env, match, policy="MlpPolicy"):
        model = cls(policy, env, n_steps=32, batch_size=16, n_epochs=1, seed=0)
        with pytest.raises(NonFiniteEnvironmentError, match=match):
            model.learn(64)
        # The first rollout has trained the model, which is still good
        assert model._n_updates == 1
        assert all(th.isfinite(parameter).all() for parameter in model.policy.parameters())
        model.save(tmp_path / "model")

    check(BrokenEnv(observation=value), rf"observation that is not finite: observation\[.*1\] = {value}")
    check(BrokenEnv(observation=value, dict_space=True), rf"not finite: speed\[.*1\] = {value}", "MultiInputPolicy")
    check(BrokenEnv(reward=value), rf"reward that is not finite: {value} at step 7 of the rollout in environment 0")


@pytest.mark.parametrize("cls", ALGORITHMS)
@pytest.mark.parametrize("action", [spaces.Box(-1, 1, (2,)), spaces.Discrete(3)])
@pytest.mark.parametrize("learning_rate", [1e30, float(np.finfo(np.float32).max)])
def test_update_that_blows_up_is_undone(cls, action, learning_rate, tmp_path):
    env = SpaceEnv(OBSERVATION_SPACES["box"], action)
    model = cls("MlpPolicy", env, learning_rate=1e-4, n_steps=32, batch_size=16, n_epochs=2, seed=0).learn(32)
    model.lr_schedule = lambda _: learning_rate
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    optimizer_before = {key: value["exp_avg"].clone() for key, value in model.policy.optimizer.state_dict()["state"].items()}
    kl_coef = getattr(model, "kl_coef", None)
    with pytest.raises(FloatingPointError, match="smaller learning_rate") as raised:
        model.learn(32, reset_num_timesteps=False)
    assert isinstance(raised.value, NonFiniteUpdateError)
    assert isinstance(raised.value, ValueError)
    assert equal(model.policy.state_dict(), before)
    optimizer_after = model.policy.optimizer.state_dict()["state"]
    assert equal({key: value["exp_avg"] for key, value in optimizer_after.items()}, optimizer_before)
    assert model._n_updates == 2
    assert getattr(model, "kl_coef", None) == kl_coef
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", env=SpaceEnv(OBSERVATION_SPACES["box"], action), learning_rate=1e-4)
    assert equal(loaded.policy.state_dict(), before)
    loaded.learn(32)


class OwnEvaluation(ActorCriticPolicy):
    def evaluate_actions(self, obs, actions):
        return super().evaluate_actions(obs, actions)


@pytest.mark.parametrize("policy", ["MlpPolicy", OwnEvaluation])
def test_kl_that_is_not_finite_is_an_error(policy):
    """It is part of the loss of the next step."""
    env = SpaceEnv(OBSERVATION_SPACES["box"], ACTION_SPACES["box"])
    kwargs = {"n_steps": 26, "batch_size": 26, "n_epochs": 1, "learning_rate": 1e30, "max_grad_norm": None}
    with pytest.raises(NonFiniteUpdateError):
        PPOFixedKL(policy, env, **kwargs, seed=0).learn(26)


class Interrupt(PPOKLPen):
    """The user presses Ctrl-C in the third minibatch."""

    def surrogate(self, terms, coef):
        self.n_minibatches = getattr(self, "n_minibatches", 0) + 1
        if self.n_minibatches == 3:
            raise KeyboardInterrupt
        return super().surrogate(terms, coef)


def test_interrupted_update_is_undone():
    model = Interrupt("MlpPolicy", "Pendulum-v1", n_steps=64, batch_size=16, compile=False)
    before = copy.deepcopy(model.policy.state_dict())
    with pytest.raises(KeyboardInterrupt):
        model.learn(64)
    assert model.n_minibatches == 3
    assert equal(model.policy.state_dict(), before)
    assert model._n_updates == 0


class MaskedExtractor(FlattenExtractor):
    """Has a buffer that is infinite by intent."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.register_buffer("mask", th.full((3,), -float("inf")))


class CountsWithoutSaving(FlattenExtractor):
    """Has a buffer that is no part of the state that is saved."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.layer = th.nn.Linear(3, 3)
        self.register_buffer("mean", th.zeros(3), persistent=False)

    def forward(self, observations):
        features = self.layer(observations)
        self.mean.mul_(0.9).add_(0.1 * features.detach().mean(dim=0))
        return features


def test_buffers_that_are_not_saved_are_put_back():
    kwargs = {"policy_kwargs": {"features_extractor_class": CountsWithoutSaving}, "n_steps": 64, "n_epochs": 2, "seed": 0}
    model = PPOClip("MlpPolicy", "Pendulum-v1", **kwargs).learn(64)
    model.lr_schedule = lambda _: 1e30
    with pytest.raises(FloatingPointError):
        model.learn(64)
    assert th.isfinite(model.policy.features_extractor.mean).all()
    model.lr_schedule = lambda _: 1e-4
    model.learn(64)


class Sum:
    """An object that is no module."""

    value = 0.0


class MadeWhenNeeded(FlattenExtractor):
    """Has a buffer that is there from the first update on."""

    def __init__(self, observation_space, persistent):
        super().__init__(observation_space)
        self.layer = th.nn.Linear(3, 3)
        self.register_buffer("mask", None, persistent=persistent)
        self.mean, self.sum = th.zeros(3), Sum()

    def forward(self, observations):
        if self.training:
            self.mask = th.ones(len(observations), 3)
        features = self.layer(observations)
        self.mean = 0.9 * self.mean + 0.1 * features.detach().mean(dim=0)
        self.sum.value += features.sum().item()
        return features


@pytest.mark.parametrize("persistent", [False, True])
def test_buffers_that_come_and_go(persistent):
    policy_kwargs = {"features_extractor_class": MadeWhenNeeded, "features_extractor_kwargs": {"persistent": persistent}}
    kwargs = {"policy_kwargs": policy_kwargs, "n_steps": 64, "n_epochs": 2, "seed": 0}
    model = PPOClip("MlpPolicy", "Pendulum-v1", learning_rate=1e30, compile=False, **kwargs)
    for _ in range(2):
        with pytest.raises(NonFiniteUpdateError):
            model.learn(64)
        assert not model.policy.optimizer.state
        # Also what is no buffer
        assert th.isfinite(model.policy.features_extractor.mean).all()
        assert np.isfinite(model.policy.features_extractor.sum.value)


class Saturates(FlattenExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.layer = th.nn.Linear(5, 5)

    def forward(self, observations):
        return th.tanh(self.layer(observations))


class Looks(Saturates):
    """Cannot be called with what is not finite."""

    def forward(self, observations):
        return super().forward(observations) + th.eye(5)[observations[:, 1].round().long().clamp(max=0) + 1]


class OfAUser(ActorCriticPolicy):
    """With a class of its own."""


class BrokenAt(SpaceEnv):
    """Returns a bad observation at one step."""

    def __init__(self, action_space, value, at):
        super().__init__(OBSERVATION_SPACES["box"], action_space)
        self.value, self.at, self.total_steps = value, at, 0

    def step(self, action):
        observation, *rest = super().step(action)
        self.total_steps += 1
        if self.total_steps == self.at:
            observation[1] = self.value
        return observation, *rest


@pytest.mark.parametrize("at", [20, 32])
@pytest.mark.parametrize("action", ACTION_SPACES)
@pytest.mark.parametrize("extractor", [FlattenExtractor, Saturates, Looks])
def test_bad_observations_of_a_custom_policy(extractor, action, at):
    """In the midst of a rollout and at its end."""
    env = BrokenAt(ACTION_SPACES[action], float("nan"), at)
    policy_kwargs = {"features_extractor_class": extractor}
    model = PPOClip(OfAUser, env, n_steps=32, batch_size=16, n_epochs=1, seed=0, policy_kwargs=policy_kwargs)
    with pytest.raises(NonFiniteEnvironmentError, match=r"observation that is not finite: observation\[.*1\] = nan"):
        model.learn(64)
    assert model._n_updates == 0


@pytest.mark.parametrize("action", ACTION_SPACES)
def test_infinite_observation_of_which_a_custom_policy_makes_finite_numbers(action):
    """The tanh of infinity is finite, but the layer before it cannot learn from it."""
    env = BrokenAt(ACTION_SPACES[action], float("inf"), at=20)
    policy_kwargs = {"features_extractor_class": Saturates}
    model = PPOClip(OfAUser, env, n_steps=32, batch_size=16, n_epochs=1, seed=0, policy_kwargs=policy_kwargs)
    before = copy.deepcopy(model.policy.state_dict())
    with pytest.raises(NonFiniteUpdateError):
        model.learn(64)
    assert equal(model.policy.state_dict(), before)


def test_infinite_buffers_are_no_error():
    kwargs = {"policy_kwargs": {"features_extractor_class": MaskedExtractor}, "n_steps": 64, "n_epochs": 1}
    assert PPOClip("MlpPolicy", "Pendulum-v1", **kwargs).learn(64)._n_updates == 1


class MasksFromNowOn(FlattenExtractor):
    """Has an infinite buffer from the first update on."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.register_buffer("mask", None)

    def forward(self, observations):
        if self.training:
            self.mask = th.full((3,), -float("inf"))
        return super().forward(observations)


def test_infinite_buffers_that_come_in_the_update_are_no_error():
    kwargs = {"policy_kwargs": {"features_extractor_class": MasksFromNowOn}, "n_steps": 64, "n_epochs": 1}
    model = PPOClip("MlpPolicy", "Pendulum-v1", **kwargs).learn(64)
    assert model._n_updates == 1
    assert "features_extractor.mask" in model.policy.state_dict()


def test_validation_of_distributions_is_switched_on_again():
    assert th.distributions.Distribution._validate_args
    with pytest.raises(FloatingPointError):
        PPOClip("MlpPolicy", "Pendulum-v1", learning_rate=1e30, n_steps=64).learn(64)
    assert th.distributions.Distribution._validate_args
