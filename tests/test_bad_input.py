"""Bad values are errors that name argument and value, before anything is trained; good ones of unusual types are taken."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from support import OBSERVATION_SPACES, SpaceEnv, equal, train

from sb3_ppo_variants import PPOClip, PPOFixedKL, PPOKLPen

NAN, INF = float("nan"), float("inf")

OUT_OF_RANGE = {
    PPOClip: {
        "learning_rate": [-1e-3],
        "n_steps": [0],
        "batch_size": [0, 1],
        "n_epochs": [0],
        "gamma": [1.5, -0.1],
        "gae_lambda": [NAN],
        "clip_range": [0.0, -0.2, NAN],
        "clip_range_vf": [0],
        "ent_coef": [NAN],
        "vf_coef": [-0.5],
        "max_grad_norm": [0, -1],
        "use_sde": ["yes"],
        "sde_sample_freq": [-5],
        "stats_window_size": [0],
        "target_kl": [0.0, -0.01],
        "normalize_advantage": ["rollout", 1],
        "compile": ["fast", 1],
    },
    PPOFixedKL: {"target_kl": [-0.01], "kl_coef": [-1.0, INF]},
    PPOKLPen: {
        "target_kl": [0.0],
        "kl_target": [0.0],
        "init_kl_coef": [0.0, 1e7],
        "kl_coef_bounds": [(1.0, 0.5), (0.0, 10.0)],
    },
}
OF_ANOTHER_TYPE = {
    PPOClip: {
        "learning_rate": ["fast", th.tensor(0.01)],
        "n_steps": [2.5],
        "batch_size": [None],
        "n_epochs": [True],
        "gae_lambda": ["0.9"],
        "clip_range": [[0.2], None, th.tensor(0.01)],
        "ent_coef": ["auto", th.tensor(0.01)],
        "vf_coef": [None, th.tensor(0.01)],
        "sde_sample_freq": [1.5],
        "policy_kwargs": [[1]],
        "rollout_buffer_kwargs": [[1]],
        "seed": ["a"],
    },
    PPOFixedKL: {"kl_coef": [None]},
    PPOKLPen: {"kl_target": [None], "init_kl_coef": ["1"], "kl_coef_bounds": [10.0, (0.1, None)]},
}
BAD_ARGUMENTS = [
    (cls, name, value, error)
    for table, error in ((OUT_OF_RANGE, ValueError), (OF_ANOTHER_TYPE, TypeError))
    for cls, arguments in table.items()
    for name, values in arguments.items()
    for value in values
]


@pytest.mark.parametrize(("cls", "name", "value", "error"), BAD_ARGUMENTS)
def test_bad_arguments(cls, name, value, error):
    with pytest.raises(error, match=rf"\b{name}\b") as raised:
        cls("MlpPolicy", "Pendulum-v1", **{name: value})
    if not isinstance(value, tuple):
        assert str(value) in str(raised.value)


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        (PPOClip, "normalize_advantage", 1),
        (PPOClip, "clip_range", None),
        (PPOClip, "n_epochs", 0),
        (PPOClip, "compile", "yes"),
        (PPOFixedKL, "target_kl", -1),
    ],
)
def test_bad_attributes(cls, name, value):
    model = cls("MlpPolicy", "Pendulum-v1")
    setattr(model, name, value)
    with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b.*but is {value!r}"):
        model.learn(1)
    assert model.num_timesteps == 0


@pytest.mark.parametrize("error", [AssertionError, ValueError])
def test_what_sb3_asserts_may_be_caught_as_that_and_as_a_value_error(error):
    observation = OBSERVATION_SPACES["box"]
    for env, kwargs, match in (
        ("Pendulum-v1", {"batch_size": 1}, "batch_size"),
        ("Pendulum-v1", {"n_steps": 1}, "n_steps"),
        ("Pendulum-v1", {"policy_kwargs": {"squash_output": True}}, "squash_output=True is only available"),
        (SpaceEnv(observation, spaces.Text(3)), {}, "Text"),
        (SpaceEnv(observation, spaces.Box(-np.inf, np.inf, (2,))), {}, "finite"),
    ):
        with pytest.raises(AssertionError):
            PPO("MlpPolicy", env, **kwargs)
        with pytest.raises(error, match=match):
            PPOClip("MlpPolicy", env, **kwargs)


@pytest.mark.parametrize("cls", [PPOClip, PPOKLPen])
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
    klpen = PPOKLPen("MlpPolicy", "Pendulum-v1", n_steps=64, kl_coef_bounds=(0.5, 2))
    for beta in (0.4, 2.5):
        with pytest.raises(ValueError, match=rf"kl_coef must be between 0\.5 and 2, but is {beta}"):
            klpen.kl_coef = beta
    klpen.kl_coef, klpen.clip_range = 2, 0.125
    assert klpen.coefficients() == {"ent_coef": 0, "vf_coef": 0.5, "kl_coef": 2, "kl_target": 0.01, "clip_range": 0.125}
    klpen.clip_range = -1
    with pytest.raises(ValueError, match=r"clip_range must be greater than 0, but is -1"):
        klpen.learn(64)


def test_arguments_of_learn():
    for total_timesteps in (-1, NAN, -INF):
        with pytest.raises(ValueError, match="total_timesteps"):
            PPOClip("MlpPolicy", "Pendulum-v1").learn(total_timesteps)
    with pytest.raises(ValueError, match="log_interval must not be 0"):
        PPOClip("MlpPolicy", "Pendulum-v1").learn(64, log_interval=0)


# SB3's numbers are the same in float32 and float64
NUMBERS_OF_NUMPY = {
    **dict.fromkeys(("learning_rate", "gamma", "gae_lambda", "clip_range", "vf_coef"), np.float32(0.5)),
    **dict.fromkeys(("ent_coef", "max_grad_norm", "target_kl"), np.float64(0.5)),
    **dict.fromkeys(("n_epochs", "clip_range_vf", "sde_sample_freq", "stats_window_size", "seed"), np.int64(3)),
    "n_steps": np.int32(26),
    "batch_size": np.random.choice([13]),
    "use_sde": np.False_,
    "normalize_advantage": np.True_,
}


def test_numbers_of_numpy():
    numbers = {name: value.item() for name, value in NUMBERS_OF_NUMPY.items()}
    expected, actual = (train(PPOClip, compile=False, **some)[0] for some in (numbers, NUMBERS_OF_NUMPY))
    assert equal(expected.policy.state_dict(), actual.policy.state_dict())
    assert expected._n_updates == actual._n_updates > 0
    for cls, name in ((PPOFixedKL, "kl_coef"), (PPOKLPen, "kl_target"), (PPOKLPen, "init_kl_coef")):
        assert train(cls, n_updates=1, **{name: np.float32(0.5)})[0]._n_updates == 3


@pytest.mark.parametrize(
    ("policy", "env", "error", "match"),
    [
        ("NoPolicy", "Pendulum-v1", ValueError, "NoPolicy"),
        (th.nn.Linear, "Pendulum-v1", ValueError, "policy must be an ActorCriticPolicy"),
        ("MultiInputPolicy", "Pendulum-v1", ValueError, "dictionaries of observations, but those of env are Box"),
        ("CnnPolicy", "Pendulum-v1", ValueError, r"cannot be built: .* NatureCNN only with images"),
        ("MlpPolicy", None, ValueError, r"env must be .* but is None"),
        ("MlpPolicy", "NoEnv-v0", gym.error.NameNotFound, "NoEnv"),
    ],
)
def test_policies_and_environments(policy, env, error, match):
    with pytest.raises(error, match=match):
        PPOKLPen(policy, env)


def test_one_sample_per_rollout():
    for normalize_advantage in (True, "batch"):
        with pytest.raises(ValueError, match=r"n_steps \* n_envs = 1 \* 1 = 1"):
            PPOClip("MlpPolicy", "Pendulum-v1", n_steps=1, normalize_advantage=normalize_advantage)
    model = PPOKLPen("MlpPolicy", "Pendulum-v1", n_steps=1, batch_size=1, normalize_advantage=False, seed=0).learn(2)
    assert model._n_updates == 20
