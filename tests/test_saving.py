import functools
import io
import random
import zipfile
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from masked_support import masked_env
from sb3_contrib import TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.dqn.policies import DQNPolicy
from support import BOX_ENV, equal, make_model, space_env

from sb3_ppo_variants import PPOClip, PPOFixedKL, PPOKLPen


def pendulum(cls=PPOClip, **kwargs):
    return make_model(cls, env="Pendulum-v1", **{"n_steps": 64, "batch_size": 32, **kwargs})


@pytest.mark.parametrize(("cls", "use_sde"), [(PPOClip, True), (PPOKLPen, False)])
def test_resumed_training_is_the_uninterrupted_one(cls, use_sde, tmp_path):
    """
    SB3's ``load`` seeds the generators anew and resets the environment. Where a user keeps both (``force_reset=False``,
    and the generators' states put back), 2k + 2k steps are bit for bit 4k steps.
    """

    def model(env):
        return make_model(cls, env=env, n_steps=125, batch_size=125, use_sde=use_sde, learning_rate=1e-3)

    at_once = model(make_vec_env("Pendulum-v1", seed=0)).learn(1000)
    env = make_vec_env("Pendulum-v1", seed=0)
    first = model(env).learn(500)
    first.save(tmp_path / "model")
    states = random.getstate(), np.random.get_state(), th.get_rng_state()
    second = cls.load(tmp_path / "model", env=env, force_reset=False, device="cpu")
    for put_back, state in zip((random.setstate, np.random.set_state, th.set_rng_state), states, strict=True):
        put_back(state)
    second.learn(500, reset_num_timesteps=False)
    assert second.num_timesteps == at_once.num_timesteps == 1000
    assert equal(second.policy.state_dict(), at_once.policy.state_dict())
    assert equal(second.policy.optimizer.state_dict(), at_once.policy.optimizer.state_dict())
    assert getattr(second, "kl_coef", None) == getattr(at_once, "kl_coef", None)


def test_beta_survives(tmp_path):
    # Far above every KL: beta is halved in each update
    model = pendulum(PPOKLPen, kl_target=1e3).learn(192)
    assert model.kl_coef == 1 / 8
    model.save(tmp_path / "model")
    # RL Zoo's -i passes the hyperparameters of the YAML to load
    loaded = PPOKLPen.load(tmp_path / "model", env=make_vec_env("Pendulum-v1"), init_kl_coef=1.0, kl_target=1e3)
    assert loaded.kl_coef == 1 / 8
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.kl_coef == 1 / 16
    assert PPOKLPen.load(tmp_path / "model", kl_coef=3.0).kl_coef == 3.0


def test_schedules_and_arguments_of_load(tmp_path):
    model = pendulum(PPOFixedKL, kl_coef=lambda progress: 4.0 * progress, ent_coef=lambda _: 0.1)
    assert model.kl_coef == 4.0
    model.learn(128)
    assert model.kl_coef == 0.0
    model.save(tmp_path / "model")
    loaded = PPOFixedKL.load(tmp_path / "model")
    assert loaded.coefficients() == model.coefficients() == {"ent_coef": 0.1, "vf_coef": 0.5, "kl_coef": 0.0}
    changed = PPOFixedKL.load(tmp_path / "model", kl_coef=2.5, clip_range=0.1, learning_rate=1e-4, n_epochs=7)
    assert (changed.kl_coef, changed.clip_range(1.0), changed.lr_schedule(1.0), changed.n_epochs) == (2.5, 0.1, 1e-4, 7)


def test_model_of_sb3_ppo(tmp_path):
    """A model that SB3's PPO trained can be trained on with PPOClip, and gives what SB3's PPO gives."""
    make_model(PPO).learn(104).save(tmp_path / "ppo")
    models = [cls.load(tmp_path / "ppo", env=BOX_ENV(), device="cpu").learn(104) for cls in (PPO, PPOClip)]
    assert equal(models[0].policy.state_dict(), models[1].policy.state_dict())


@pytest.mark.parametrize(
    ("cls", "policy", "make_env"),
    [
        (PPO, "MlpPolicy", BOX_ENV),
        (MaskablePPO, "MaskableMlpPolicy", masked_env("box", "discrete")),
        (RecurrentPPO, "MlpLstmPolicy", space_env("box", "discrete")),
    ],
)
def test_way_back_to_sb3_and_contrib(cls, policy, make_env, tmp_path):
    model = make_model(policy=policy, env=make_env()).learn(52)
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", env=make_env())
    assert equal(loaded.policy.state_dict(), model.policy.state_dict())
    assert loaded.learn(52, reset_num_timesteps=False).num_timesteps == 104


def test_bad_arguments_of_load(tmp_path):
    pendulum().save(tmp_path / "model")
    for kwargs, error, message in (
        ({"clip_rnage": 0.3}, TypeError, "unexpected keyword argument: clip_rnage"),
        ({"n_epochs": 0}, ValueError, "n_epochs must be at least 1, but is 0"),
        ({"stats_window_size": 0}, ValueError, "stats_window_size must be at least 1, but is 0"),
    ):
        with pytest.raises(error, match=message):
            PPOClip.load(tmp_path / "model", **kwargs)
    PPOClip("MlpPolicy", "CartPole-v1").save(tmp_path / "discrete")
    with pytest.raises(ValueError, match=r"use_sde must be False .* not continuous, but those of env are Discrete\(2\)"):
        PPOClip.load(tmp_path / "discrete", use_sde=True)
    model = PPOClip.load(tmp_path / "model", env=gym.make("Pendulum-v1"), stats_window_size=7).learn(64)
    assert model.ep_info_buffer.maxlen == 7


def arguments(model):
    """Those whose meaning differs between the classes."""
    clip_range = model.clip_range and model.clip_range(1.0)
    return {"clip_range": clip_range, "target_kl": model.target_kl, "kl_coef": getattr(model, "kl_coef", None)}


# The saving class, its arguments, the loading class, and what becomes of them there
@pytest.mark.parametrize(
    ("saved", "kwargs", "loading", "expected"),
    [
        # A clipping in addition to the penalty is not the paper's epsilon; target_kl ends an update everywhere
        (PPO, {"clip_range": 0.3}, PPOClip, (0.3, 0.5, None)),
        (PPO, {"clip_range": 0.3}, PPOFixedKL, (None, 0.5, 3.0)),
        (PPOClip, {"clip_range": 0.3}, PPOKLPen, (None, 0.5, 1.0)),
        (PPOFixedKL, {"kl_coef": 2.0, "clip_range": 0.3}, PPOKLPen, (0.3, 0.5, 2.0)),
        (PPOFixedKL, {"kl_coef": lambda _: 2.0}, PPOKLPen, (None, 0.5, 1.0)),
        (PPOFixedKL, {"kl_coef": 2.0}, PPOClip, (0.2, 0.5, None)),
        (PPOKLPen, {"init_kl_coef": 2.0, "clip_range": 0.3}, PPOFixedKL, (0.3, 0.5, 2.0)),
        (PPOKLPen, {"init_kl_coef": 2.0, "clip_range": 0.3}, PPOClip, (0.2, 0.5, None)),
    ],
)
def test_arguments_that_mean_something_else_in_another_class(saved, kwargs, loading, expected, tmp_path):
    pendulum(saved, target_kl=0.5, **kwargs).save(tmp_path / "model")
    model = loading.load(tmp_path / "model", env=make_vec_env("Pendulum-v1"))
    assert tuple(arguments(model).values()) == expected
    # From then on a model of the class that has loaded it
    model.learn(64).save(tmp_path / "again")
    assert arguments(loading.load(tmp_path / "again")) == arguments(model)
    given = {"clip_range": 0.4, "target_kl": 0.6}
    loaded = arguments(loading.load(tmp_path / "model"))
    assert arguments(loading.load(tmp_path / "model", **given)) == {**loaded, **given}
    # As with SB3's load, so may custom_objects
    assert arguments(loading.load(tmp_path / "model", custom_objects=given)) == {**loaded, **given}


def test_beta_of_a_loaded_model(tmp_path):
    pendulum(PPOKLPen, init_kl_coef=16.0).save(tmp_path / "model")
    assert PPOKLPen.load(tmp_path / "model").kl_coef == 16.0
    # Within the new bounds
    assert PPOKLPen.load(tmp_path / "model", kl_coef_bounds=(0.1, 2.0), init_kl_coef=1.0).kl_coef == 2.0
    with pytest.raises(ValueError, match=r"kl_coef must be .*, but is 10000000\.0"):
        PPOKLPen.load(tmp_path / "model", kl_coef=1e7)
    # Once beta has been adapted, its first value need not be within them
    pendulum(PPOKLPen, n_steps=16, batch_size=16).learn(16).save(tmp_path / "trained")
    assert PPOKLPen.load(tmp_path / "trained", kl_coef_bounds=(2.0, 10.0), kl_coef=3.0).kl_coef == 3.0
    pendulum(PPO).save(tmp_path / "model")
    assert PPOKLPen.load(tmp_path / "model", init_kl_coef=8.0, kl_coef_bounds=(4, 16)).kl_coef == 8.0


@pytest.mark.parametrize("cls", [PPOClip, PPOKLPen])
def test_constructors_of_other_shapes_and_what_the_load_of_sb3_takes(cls, tmp_path):
    class EnvFirst(cls):
        policy_aliases: ClassVar = {**cls.policy_aliases, "Mine": ActorCriticPolicy}

        def __init__(self, env, policy="Mine", **kwargs):
            super().__init__(policy, env, **kwargs)

    class Partial(cls):
        __init__ = functools.partialmethod(cls.__init__, policy="MlpPolicy", n_steps=64)

    for own in (EnvFirst, Partial):
        own(env="Pendulum-v1", batch_size=32, device="cpu").save(tmp_path / "model", exclude=["clip_range"])
        space = gym.spaces.Box(-3, 3, (1,), np.float32)
        loaded = own.load(tmp_path / "model", n_epochs=7, action_space=space)
        assert (loaded.n_epochs, loaded.action_space) == (7, space)
        assert arguments(loaded)["clip_range"] == (0.2 if cls is PPOClip else None)
        with pytest.raises(TypeError, match=r"unexpected keyword argument: kwargs$"):
            own.load(tmp_path / "model", kwargs=1)


def test_a_trained_policy_can_be_looked_at_in_one_environment(tmp_path, recwarn):
    """Sizes of the rollout that do not fit it are no matter of ``load``."""
    env = make_vec_env("Pendulum-v1", n_envs=8)
    make_model(env=env, n_steps=1, batch_size=8).save(tmp_path / "model")
    loaded = PPOClip.load(tmp_path / "model", env=make_vec_env("Pendulum-v1"))
    assert len(recwarn) == 0
    with pytest.raises(ValueError, match=r"n_steps \* n_envs = 1 \* 1 = 1, but advantages"):
        loaded.learn(8)


def test_models_of_other_algorithms(tmp_path):
    for other in (A2C, TRPO):
        other("MlpPolicy", "CartPole-v1").save(tmp_path / "model")
        message = r"model is no model of PPO: it has no clip_range and no n_ep"
        with pytest.raises(ValueError, match=message):
            PPOKLPen.load(tmp_path / "model")
    with pytest.raises(ValueError, match=r"policy must be an ActorCriticPolicy, or contrib's with masks, but is .*DQNPolicy"):
        PPOKLPen(DQNPolicy, "CartPole-v1")


def test_file_objects():
    model, file = pendulum(PPOKLPen).learn(64), io.BytesIO()
    model.save(file)
    loaded = PPOKLPen.load(file)
    assert equal(loaded.policy.state_dict(), model.policy.state_dict())


def test_foreign_and_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        PPOClip.load(tmp_path / "missing")
    pendulum().save(tmp_path / "model")
    content = (tmp_path / "model.zip").read_bytes()
    (tmp_path / "text.zip").write_text("no zip-file")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "no model")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        offset = archive.getinfo("policy.pth").header_offset
    flipped = bytearray(content)
    flipped[offset + 2000] ^= 0xFF
    (tmp_path / "flipped.zip").write_bytes(bytes(flipped))
    for name, message in (
        ("text", "the file .*text wasn't a zip-file"),
        ("other", "other is no model of PPO"),
        ("flipped", "flipped"),
    ):
        with pytest.raises(ValueError, match=message):
            PPOClip.load(tmp_path / name)
