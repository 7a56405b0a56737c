"""Bad values are errors that name argument and value, before anything is trained; good ones of unusual types are taken."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EveryNTimesteps
from support import OBSERVATION_SPACES, SpaceEnv, equal, space_env, train

from sb3_ppo_variants import PPOClip, PPOFixedKL, PPOKLPen

ALGORITHMS = [PPOClip, PPOFixedKL, PPOKLPen]
NAN, INF = float("nan"), float("inf")

BAD_ARGUMENTS = [
    (PPOClip, "learning_rate", -1e-3, ValueError),
    (PPOClip, "learning_rate", "fast", TypeError),
    (PPOClip, "n_steps", 0, ValueError),
    (PPOClip, "n_steps", 2.5, TypeError),
    (PPOClip, "batch_size", 0, ValueError),
    (PPOClip, "batch_size", 1, ValueError),
    (PPOClip, "batch_size", None, TypeError),
    (PPOClip, "n_epochs", 0, ValueError),
    (PPOClip, "n_epochs", True, TypeError),
    (PPOClip, "gamma", 1.5, ValueError),
    (PPOClip, "gamma", -0.1, ValueError),
    (PPOClip, "gae_lambda", NAN, ValueError),
    (PPOClip, "gae_lambda", "0.9", TypeError),
    (PPOClip, "clip_range", 0.0, ValueError),
    (PPOClip, "clip_range", -0.2, ValueError),
    (PPOClip, "clip_range", NAN, ValueError),
    (PPOClip, "clip_range", [0.2], TypeError),
    (PPOClip, "clip_range", None, TypeError),
    (PPOClip, "clip_range_vf", 0, ValueError),
    (PPOClip, "ent_coef", NAN, ValueError),
    (PPOClip, "ent_coef", "auto", TypeError),
    (PPOClip, "vf_coef", -0.5, ValueError),
    (PPOClip, "vf_coef", None, TypeError),
    (PPOClip, "max_grad_norm", 0, ValueError),
    (PPOClip, "max_grad_norm", -1, ValueError),
    (PPOClip, "use_sde", "yes", TypeError),
    (PPOClip, "sde_sample_freq", 1.5, TypeError),
    (PPOClip, "sde_sample_freq", -5, ValueError),
    (PPOClip, "policy_kwargs", [1], TypeError),
    (PPOClip, "seed", "a", TypeError),
    (PPOClip, "stats_window_size", 0, ValueError),
    (PPOClip, "target_kl", 0.0, ValueError),
    (PPOClip, "target_kl", -0.01, ValueError),
    (PPOClip, "normalize_advantage", "rollout", ValueError),
    (PPOClip, "normalize_advantage", 1, ValueError),
    (PPOClip, "compile", "fast", ValueError),
    (PPOClip, "compile", 1, ValueError),
    (PPOFixedKL, "target_kl", -0.01, ValueError),
    (PPOFixedKL, "kl_coef", -1.0, ValueError),
    (PPOFixedKL, "kl_coef", INF, ValueError),
    (PPOFixedKL, "kl_coef", None, TypeError),
    (PPOKLPen, "target_kl", 0.0, ValueError),
    (PPOKLPen, "kl_target", None, TypeError),
    (PPOKLPen, "kl_target", 0.0, ValueError),
    (PPOKLPen, "init_kl_coef", 0.0, ValueError),
    (PPOKLPen, "init_kl_coef", 1e7, ValueError),
    (PPOKLPen, "init_kl_coef", "1", TypeError),
    (PPOKLPen, "kl_coef_bounds", (1.0, 0.5), ValueError),
    (PPOKLPen, "kl_coef_bounds", (0.0, 10.0), ValueError),
    (PPOKLPen, "kl_coef_bounds", 10.0, TypeError),
    (PPOKLPen, "kl_coef_bounds", (0.1, None), TypeError),
]


@pytest.mark.parametrize(("cls", "name", "value", "error"), BAD_ARGUMENTS)
def test_out_of_range(cls, name, value, error):
    with pytest.raises(error, match=name) as raised:
        cls("MlpPolicy", "Pendulum-v1", **{name: value})
    if not isinstance(value, tuple):
        assert str(value) in str(raised.value)


@pytest.mark.parametrize("cls", ALGORITHMS)
def test_unknown_argument(cls):
    with pytest.raises(TypeError, match="clip_rnage"):
        cls("MlpPolicy", "Pendulum-v1", clip_rnage=0.2)


# What SB3 asserts: it may be caught as that, and as a ValueError
ASSERTED = {
    "batch size": {"batch_size": 1},
    "rollout": {"n_steps": 1},
    "squashed actions": {"policy_kwargs": {"squash_output": True}},
}


@pytest.mark.parametrize("error", [AssertionError, ValueError])
@pytest.mark.parametrize("case", ASSERTED)
def test_what_sb3_asserts_may_be_caught_as_that(case, error):
    with pytest.raises(AssertionError):
        PPO("MlpPolicy", "Pendulum-v1", **ASSERTED[case])
    with pytest.raises(error):
        PPOClip("MlpPolicy", "Pendulum-v1", **ASSERTED[case])


@pytest.mark.parametrize("error", [AssertionError, ValueError])
def test_action_spaces_that_sb3_asserts(error):
    for action in (spaces.Text(3), spaces.Box(-np.inf, np.inf, (2,))):
        env = SpaceEnv(OBSERVATION_SPACES["box"], action)
        with pytest.raises(AssertionError):
            PPO("MlpPolicy", env)
        with pytest.raises(error, match=r"Text|finite"):
            PPOClip("MlpPolicy", env)


@pytest.mark.parametrize("cls", ALGORITHMS)
def test_truncated_minibatch_is_announced_as_by_sb3(cls):
    with pytest.warns(UserWarning, match=r"^You have specified a mini-batch size of 64") as theirs:
        PPO("MlpPolicy", "Pendulum-v1", n_steps=100)
    with pytest.warns(UserWarning, match=r"truncated mini-batch of size 36 \(n_steps=100 and n_envs=1\)$") as ours:
        cls("MlpPolicy", "Pendulum-v1", n_steps=100)
    # Filters may hold SB3's first line
    assert str(ours[0].message).startswith(str(theirs[0].message).split("\n")[0].split(", but")[0])
    # Where the user has to change something
    assert ours[0].filename == __file__


SCHEDULES = [
    (PPOClip, "ent_coef", lambda _: NAN, ValueError, "must be finite, but is nan"),
    (PPOClip, "learning_rate", lambda progress: 1e-3 if progress == 1 else NAN, ValueError, "must be finite, but is nan"),
    (PPOKLPen, "clip_range", lambda _: -0.2, ValueError, r"must be at least 0\.0, but is -0\.2"),
    (PPOKLPen, "clip_range", lambda _: "a", TypeError, "must be a number, but is 'a'"),
    (PPOKLPen, "kl_target", lambda _: -1, ValueError, "must be at least 0, but is -1"),
    (PPOFixedKL, "kl_coef", lambda progress: progress - 0.5, ValueError, r"must be at least 0, but is -0\.5"),
]


@pytest.mark.parametrize(("cls", "name", "schedule", "error", "match"), SCHEDULES)
def test_schedule_that_goes_bad_is_named_before_the_update(cls, name, schedule, error, match):
    model = cls("MlpPolicy", "Pendulum-v1", n_steps=64, **{name: schedule})
    with pytest.raises(error, match=rf"{name} \(at remaining progress 0\) {match}"):
        model.learn(64)
    assert model._n_updates == 0
    # The model can be trained on
    assert model.policy.optimizer.param_groups[0]["lr"] == (1e-3 if name == "learning_rate" else 3e-4)


def test_numbers_may_be_assigned_and_are_checked():
    fixed = PPOFixedKL("MlpPolicy", "Pendulum-v1", n_steps=64)
    with pytest.raises(ValueError, match="kl_coef must be at least 0, but is -2"):
        fixed.kl_coef = -2.0
    fixed.kl_coef = lambda remaining: 4 * remaining
    assert fixed.kl_coef == 4
    fixed.learn(64)
    assert fixed.logger.name_to_value["train/kl_coef"] == 0
    klpen = PPOKLPen("MlpPolicy", "Pendulum-v1", n_steps=64, kl_coef_bounds=(0.5, 2))
    for beta in (-2.0, 0.4, 2.5):
        with pytest.raises(ValueError, match=rf"kl_coef must be between 0\.5 and 2, but is {beta}"):
            klpen.kl_coef = beta
    klpen.kl_coef = 2
    assert klpen.kl_coef == 2.0
    klpen.kl_target = -1.0
    with pytest.raises(ValueError, match="kl_target must be at least 0, but is -1"):
        klpen.learn(64)
    clip = PPOClip("MlpPolicy", "Pendulum-v1", n_steps=64)
    clip.clip_range = 0.125
    assert clip.coefficients()["clip_range"] == 0.125
    clip.clip_range = -1
    with pytest.raises(ValueError, match=r"clip_range must be at least 0\.0, but is -1"):
        clip.learn(64)


@pytest.mark.parametrize("total_timesteps", [-1, NAN, -INF])
def test_total_timesteps(total_timesteps):
    with pytest.raises(ValueError, match="total_timesteps"):
        PPOClip("MlpPolicy", "Pendulum-v1").learn(total_timesteps)


class StopTraining(BaseCallback):
    def _on_step(self):
        return False


def test_training_until_a_callback_ends_it():
    model = PPOClip("MlpPolicy", "Pendulum-v1", n_steps=32, batch_size=32, compile=False)
    model.learn(INF, callback=EveryNTimesteps(64, StopTraining()))
    assert model.num_timesteps == 64


def test_log_interval():
    with pytest.raises(ValueError, match="log_interval must not be 0"):
        PPOClip("MlpPolicy", "Pendulum-v1").learn(64, log_interval=0)


NUMBERS_OF_NUMPY = {
    "learning_rate": np.float32(0.25),
    "n_steps": np.int32(26),
    "batch_size": np.random.default_rng(0).choice([13]),
    "n_epochs": np.int64(2),
    "gamma": np.float32(0.5),
    "gae_lambda": np.float32(0.5),
    "clip_range": np.float32(0.5),
    "clip_range_vf": np.int64(1),
    "normalize_advantage": np.True_,
    "ent_coef": np.float64(0.125),
    "vf_coef": np.float32(0.25),
    "max_grad_norm": np.float64(0.5),
    "use_sde": np.False_,
    "sde_sample_freq": np.int64(4),
    "target_kl": np.float64(0.5),
    "stats_window_size": np.int64(7),
    "seed": np.int64(3),
}


def test_numbers_of_numpy():
    make_env = space_env("box", "box")
    # SB3's numbers are the same in float32 and float64
    numbers = {name: value.item() for name, value in NUMBERS_OF_NUMPY.items()}
    expected, actual = (train(PPOClip, "MlpPolicy", make_env, compile=False, **some) for some in (numbers, NUMBERS_OF_NUMPY))
    assert equal(expected[0].policy.state_dict(), actual[0].policy.state_dict())
    assert expected[0]._n_updates == actual[0]._n_updates > 0
    for names, cls in ((("kl_coef",), PPOFixedKL), (("kl_target", "init_kl_coef"), PPOKLPen)):
        model, _ = train(cls, "MlpPolicy", make_env, n_updates=1, compile=False, **dict.fromkeys(names, np.float32(0.5)))
        assert model._n_updates == 3
    for normalize_advantage in (np.str_("batch"), *np.array([True, False])):
        model = PPOClip("MlpPolicy", "Pendulum-v1", normalize_advantage=normalize_advantage)
        assert model.normalize_advantage == normalize_advantage
        assert type(model.normalize_advantage) in (bool, str)


@pytest.mark.parametrize("name", ["ent_coef", "vf_coef", "learning_rate", "clip_range"])
def test_tensors_are_taken_or_refused_at_the_start(name):
    with pytest.raises(TypeError, match=rf"{name} must be a number.*, but is tensor\(0\.0100\)"):
        PPOClip("MlpPolicy", "Pendulum-v1", **{name: th.tensor(0.01)})


def test_recurrent_policies(tmp_path):
    RecurrentPPO("MlpLstmPolicy", "Pendulum-v1", n_steps=8, batch_size=8).save(tmp_path / "model")
    match = "policy must act on observations alone, but RecurrentActorCriticPolicy is recurrent"
    with pytest.raises(ValueError, match=match):
        PPOClip.load(tmp_path / "model")
    with pytest.raises(ValueError, match=match):
        PPOClip(RecurrentActorCriticPolicy, "Pendulum-v1")


@pytest.mark.parametrize(
    ("args", "kwargs", "match"),
    [
        (("NoPolicy", "Pendulum-v1"), {}, "NoPolicy"),
        ((th.nn.Linear, "Pendulum-v1"), {}, "policy must be an ActorCriticPolicy"),
        (("MultiInputPolicy", "Pendulum-v1"), {}, "policy is for dictionaries of observations, but those of env are Box"),
        (("CnnPolicy", "Pendulum-v1"), {}, r"cannot be built: .* NatureCNN only with images"),
        (("MlpPolicy", "Pendulum-v1"), {"policy_kwargs": {"squash_output": True}}, "squash_output=True is only available"),
        (("MlpPolicy", None), {}, r"env must be .* but is None"),
    ],
)
@pytest.mark.parametrize("cls", [PPOClip, PPOKLPen])
def test_policies_and_environments(cls, args, kwargs, match):
    with pytest.raises(ValueError, match=match):
        cls(*args, **kwargs)


def test_other_errors_of_constructors():
    with pytest.raises(TypeError, match=r"rollout_buffer_kwargs must be of type dict, but is \[1\]"):
        PPOClip("MlpPolicy", "Pendulum-v1", rollout_buffer_kwargs=[1])
    with pytest.raises(gym.error.NameNotFound, match="NoEnv"):
        PPOClip("MlpPolicy", "NoEnv-v0")


@pytest.mark.parametrize("cls", ALGORITHMS)
def test_one_sample_per_rollout(cls):
    for normalize_advantage in (True, "batch"):
        with pytest.raises(ValueError, match=r"n_steps \* n_envs = 1 \* 1 = 1"):
            cls("MlpPolicy", "Pendulum-v1", n_steps=1, normalize_advantage=normalize_advantage)
    model = cls("MlpPolicy", "Pendulum-v1", n_steps=1, batch_size=1, normalize_advantage=False, seed=0).learn(2)
    assert model._n_updates == 20
