"""The hyperparameters for the RL Zoo: entries are the paper's or the Zoo's and build their algorithms; texts are schedules."""

import argparse
import functools
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3 import PPO
from support import SpaceEnv

from sb3_ppo_variants import AdaptiveLearningRate, PPOFixedKL, zoo
from sb3_ppo_variants.callbacks import AnnealLogStd

ALGOS = ("ppo_clip", "ppo_fixedkl", "ppo_klpen")
YAMLS = {algo: yaml.safe_load(zoo.hyperparams_path(algo).read_text(encoding="utf-8")) for algo in ALGOS}
PAPER = zoo.hyperparams_path("ppo_clip").parent / "paper"
# All entries of ppo_clip; those of the others differ by one coefficient, so of them one for each of its values
COEFFICIENTS = {"ppo_fixedkl": "kl_coef", "ppo_klpen": "kl_target"}
ENTRIES = [("ppo_clip", entry) for entry in YAMLS["ppo_clip"]]
for algo, coefficient in COEFFICIENTS.items():
    of_each_value = {str(values.get(coefficient)): entry for entry, values in YAMLS[algo].items()}
    ENTRIES += [(algo, entry) for entry in of_each_value.values()]
TASKS = ("HalfCheetah", "Hopper", "InvertedDoublePendulum", "InvertedPendulum", "Reacher", "Swimmer", "Walker2d")
PAPER_TASKS = [f"{task}-{version}" for task in TASKS for version in ("v4", "v5")]


class StubEnv(SpaceEnv):
    """In place of an environment that may not be installed."""

    def __init__(self, policy, render_mode=None):
        observations = spaces.Box(0, 255, (84, 84, 1), np.uint8) if policy == "CnnPolicy" else spaces.Box(-1, 1, (4,))
        super().__init__(observations, spaces.Discrete(3) if "Maskable" in policy else spaces.Box(-1, 1, (3,)))


class AtariEnvStub(StubEnv):
    """The Zoo knows an Atari game by the name of its class."""


@pytest.fixture
def make_manager(exp_manager, tmp_path, monkeypatch):
    """Make an experiment manager as the Zoo's ``train`` does, with stubs in place of all environments but CartPole."""

    def own_wrappers(hyperparams, key="env_wrapper"):
        return get_wrapper_class(hyperparams, key) if "sb3_ppo_variants" in str(hyperparams.get(key)) else None

    def make(algo, env_id="CartPole-v1", policy="MlpPolicy", **kwargs):
        if env_id != "CartPole-v1":
            stub = AtariEnvStub if env_id.startswith("atari") else StubEnv
            monkeypatch.setitem(gym.registry, env_id, EnvSpec(env_id, entry_point=stub, kwargs={"policy": policy}))
        arguments = {"eval_freq": -1, "verbose": 0, "device": "cpu", "seed": 0} | kwargs
        return exp_manager.ExperimentManager(argparse.Namespace(), algo, env_id, str(tmp_path), **arguments)

    get_wrapper_class = exp_manager.get_wrapper_class
    monkeypatch.setattr(exp_manager, "get_wrapper_class", own_wrappers)
    return make


def zoo_ppo(exp_manager, algo="ppo"):
    """The Zoo's hyperparameters for its own PPO, or another algorithm."""
    path = Path(str(exp_manager.__file__)).parent / "hyperparams" / f"{algo}.yml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def without_velocities(exp_manager):
    """The entries of the Zoo's ppo_lstm for such tasks. Gymnasium has LunarLander as -v3 only."""
    entries = zoo_ppo(exp_manager, "ppo_lstm").items()
    return {entry.replace("NoVel-v2", "NoVel-v3"): values for entry, values in entries if "NoVel" in entry}


def build(manager):
    model, _ = manager.setup_experiment()
    model.env.close()
    return model


@pytest.mark.parametrize(("algo", "entry"), ENTRIES)
def test_entry_builds_its_algorithm(make_manager, exp_manager, algo, entry):
    if entry == "default" and entry not in zoo_ppo(exp_manager):
        pytest.skip("this RL Zoo knows no default entries")
    values, env_id = YAMLS[algo][entry], {"default": "NotListed-v0", "atari": "atari/Stub-v0"}.get(entry, entry)
    manager = make_manager(algo, env_id, values["policy"])
    model = build(manager)
    assert type(model) is zoo.ALGOS[algo]
    assert manager.config == str(zoo.hyperparams_path(algo))
    assert model.n_envs == values.get("n_envs", 1)
    for key, value in values.items():
        if key in ("n_steps", "batch_size", "n_epochs", "gamma", "max_grad_norm", "normalize_advantage"):
            assert getattr(model, key) == value
        if str(value).startswith("lin_"):
            schedule = model.lr_schedule if key == "learning_rate" else getattr(model, key)
            assert schedule(0.5) == pytest.approx(float(value.removeprefix("lin_")) / 2)


def test_every_environment_of_the_zoos_ppo_is_there(exp_manager):
    """In ppo_clip: the two others are to have the same ones."""
    theirs, ours = zoo_ppo(exp_manager), set(YAMLS["ppo_clip"])
    assert len(theirs) > 40
    assert {*theirs, "default", "atari", *PAPER_TASKS} <= ours
    recurrent = without_velocities(exp_manager)
    assert len(recurrent) == 6
    assert {entry for entry in ours if "NoVel" in entry} == set(recurrent)
    # What else ppo_lstm has is there with another policy, or is the id of a task that Gymnasium has no longer
    assert {entry for entry in zoo_ppo(exp_manager, "ppo_lstm") if "NoVel" not in entry} <= ours


# Table 3, and the best setting of Table 1 for clipping: the coefficients of the two others follow from that
TABLE_3 = {"n_timesteps": 1_000_000, "n_envs": 1, "n_steps": 2048, "learning_rate": 3e-4, "n_epochs": 10, "batch_size": 64}
TABLE_3 |= {"gamma": 0.99, "gae_lambda": 0.95, "ent_coef": 0.0, "clip_range": 0.2}
TABLE_5 = {"n_timesteps": 10_000_000, "n_envs": 8, "n_steps": 128, "learning_rate": "lin_2.5e-4", "n_epochs": 3}
TABLE_5 |= {"batch_size": 32 * 8, "gamma": 0.99, "gae_lambda": 0.95, "vf_coef": 1.0, "ent_coef": 0.01}


def test_papers_tasks_have_table_3_and_atari_table_5():
    for task, expected in (*((task, TABLE_3) for task in PAPER_TASKS), ("atari", TABLE_5)):
        assert YAMLS["ppo_clip"][task].items() >= expected.items(), task
        # From which the coefficients of the other algorithms follow
        assert "clip_range" in YAMLS["ppo_clip"][task], task


TABLE_4 = {"n_steps": 512, "n_epochs": 15, "batch_size": 4096, "gamma": 0.99, "gae_lambda": 0.95}
TABLE_4 |= {"learning_rate": "adaptive_0.01"}
TABLE_4 |= {"callback": [{"sb3_ppo_variants.callbacks.AnnealLogStd": {"initial": -0.7, "final": -1.6}}]}


def test_files_of_the_paper_are_its_tables_4_and_5():
    table_4, table_5 = (
        yaml.safe_load((PAPER / name).read_text(encoding="utf-8")) for name in ("table4_roboschool.yml", "table5_atari.yml")
    )
    for task, n_envs in (("Humanoid", 32), ("HumanoidFlagrun", 128), ("HumanoidFlagrunHarder", 128)):
        assert table_4[f"{task}BulletEnv-v0"].items() >= {**TABLE_4, "n_envs": n_envs}.items()
    assert table_5["atari"].items() >= {**TABLE_5, "clip_range": "lin_0.1"}.items()


def test_table_3_in_the_zoo(make_manager):
    config = str(PAPER / "table3_mujoco.yml")
    model = build(make_manager("ppo_klpen", "Reacher-v4", config=config, hyperparams={"kl_target": 0.03}))
    assert (model.n_steps, model.batch_size, model.n_epochs, model.kl_target) == (2048, 64, 10, 0.03)
    assert (model.max_grad_norm, model.normalize_advantage, model.vf_coef) == (None, "batch", 1.0)
    assert (model.action_space.high > 1e38).all()


def test_table_4_adapts_the_step_size_and_anneals_the_deviation(make_manager):
    manager = make_manager("ppo_clip", "HumanoidBulletEnv-v0", config=str(PAPER / "table4_roboschool.yml"))
    assert build(manager).learning_rate == AdaptiveLearningRate(kl_target=0.01)
    (callback,) = manager.callbacks
    assert (type(callback), callback.initial, callback.final) == (AnnealLogStd, -0.7, -1.6)


def test_other_entries_of_ppo_clip_are_the_zoos(exp_manager):
    theirs = zoo_ppo(exp_manager)
    carried_over = set(theirs) - {"default", "atari", *PAPER_TASKS}
    assert len(carried_over) > 35
    # contrib's default, in place of SB3's 64
    recurrent = {env_id: {"batch_size": 128, **values} for env_id, values in without_velocities(exp_manager).items()}
    theirs |= recurrent
    for env_id in carried_over | set(recurrent):
        expected = dict(theirs[env_id])
        if "n_steps" in expected and "batch_size" in expected:
            expected["batch_size"] = min(expected["batch_size"], expected["n_steps"] * expected["n_envs"])
        ours = dict(YAMLS["ppo_clip"][env_id])
        # Python code: compared without its white space
        for values in (expected, ours):
            values["policy_kwargs"] = "".join(values.get("policy_kwargs", "").split()).replace(",)", ")")
        assert ours == expected, env_id


@pytest.mark.parametrize("algo", ["ppo_fixedkl", "ppo_klpen"])
def test_kl_entries_differ_from_ppo_clip_by_the_rule_of_their_header(algo):
    # kl_coef = 3 * 0.2 / epsilon, kl_target = 0.01 * (epsilon / 0.2)^2
    rule = {
        "ppo_fixedkl": {"0.1": 6.0, "0.18": 3.33, "0.2": 3.0, "0.3": 2.0, "0.4": 1.5},
        "ppo_klpen": {"0.1": 0.0025, "0.18": 0.0081, "0.2": 0.01, "0.3": 0.0225, "0.4": 0.04},
    }[algo]
    key = COEFFICIENTS[algo]
    assert set(YAMLS[algo]) == set(YAMLS["ppo_clip"])
    for env_id, clipped in YAMLS["ppo_clip"].items():
        expected = {name: value for name, value in clipped.items() if name != "clip_range"}
        if "clip_range" in clipped:
            epsilon = str(clipped["clip_range"])
            annealed = epsilon.startswith("lin_") and key == "kl_target"
            value = rule[epsilon.removeprefix("lin_")]
            expected[key] = f"lin_{value}" if annealed else value
        assert YAMLS[algo][env_id] == expected, env_id


HALVED = {"ent_coef": "lin_0.01", "vf_coef": "lin_0.5", "clip_range": "lin_0.3", "clip_range_vf": "lin_.3"}


@pytest.mark.parametrize(
    ("algo", "texts"),
    [("ppo_clip", HALVED), ("ppo_fixedkl", {**HALVED, "kl_coef": "lin_4"}), ("ppo_klpen", {"kl_target": "lin_1"})],
)
def test_string_schedules_and_null(make_manager, algo, texts):
    model = build(make_manager(algo, hyperparams={**texts, "learning_rate": "lin_1e-3", "target_kl": None}))
    assert model.lr_schedule(0.5) == pytest.approx(5e-4)
    assert model.target_kl is None
    model._current_progress_remaining = 0.5
    for name, text in texts.items():
        assert model.coefficients()[name] == pytest.approx(float(text.removeprefix("lin_")) / 2)
    off = {"clip_range_vf": None} if algo == "ppo_clip" else {"clip_range": None, "clip_range_vf": None}
    # The Zoo itself takes neither None nor objects, which may come from a Python file
    rule = AdaptiveLearningRate(initial=1e-3)
    model = build(make_manager(algo, hyperparams={**off, "learning_rate": rule}))
    assert not off.keys() & model.coefficients().keys()
    assert model.adapted_learning_rate == 1e-3


@pytest.mark.parametrize(
    ("algo", "hyperparams", "message"),
    [
        ("ppo_klpen", {"kl_target": "1e-2"}, "kl_target must be .* such as lin_0.2, but is the text '1e-2' .in YAML, 1e-3 is"),
        ("ppo_fixedkl", {"kl_coef": "exp_3.0"}, "kl_coef must be .* such as lin_0.2, but is the text 'exp_3.0'$"),
        ("ppo_fixedkl", {"ent_coef": "lin_much"}, "ent_coef must be .* but is the text 'lin_much'$"),
        ("ppo_klpen", {"learning_rate": "1e-3"}, "learning_rate must be .* such as lin_0.2 or adaptive_0.01, but .* .in YAML"),
        ("ppo_clip", {"learning_rate": "adaptive_"}, "learning_rate must be .* but is the text 'adaptive_'$"),
        ("ppo_clip", {"learning_rate": "adaptive_-0.01"}, "learning_rate is 'adaptive_-0.01', but .* kl_target .* is -0.01"),
        ("ppo_clip", {"clip_range": "adaptive_0.01"}, "clip_range must be .* but is the text 'adaptive_0.01'$"),
    ],
)
def test_bad_values_are_named(make_manager, algo, hyperparams, message):
    with pytest.raises(ValueError, match=message):
        build(make_manager(algo, hyperparams=hyperparams))


@pytest.mark.parametrize(("saved", "own"), [("ppo", {}), ("ppo_fixedkl", {"kl_coef": "lin_3.0"})])
def test_models_of_other_algorithms_go_on(make_manager, saved, own, tmp_path):
    """With the hyperparameters of the entry, and without what means something else there."""
    path = tmp_path / "model.zip"
    build(make_manager(saved, hyperparams=own)).save(path)
    for algo, expected in {"ppo_clip": (0.2, None), "ppo_fixedkl": (None, None), "ppo_klpen": (None, 0.01)}.items():
        model, _ = make_manager(algo, trained_agent=str(path)).setup_experiment()
        assert type(model) is zoo.ALGOS[algo]
        assert tuple(map(model.coefficients().get, ("clip_range", "kl_target"))) == expected
        model.learn(256)
        model.env.close()


class Weighted(PPOFixedKL):
    """A user's own algorithm."""

    def __init__(self, *args, weight=1.0, **kwargs):
        self.weight = weight
        super().__init__(*args, **kwargs)


def test_own_algorithms(make_manager, tmp_path, monkeypatch):
    from rl_zoo3.utils import ALGOS

    monkeypatch.setitem(ALGOS, "mine", Weighted)
    config = tmp_path / "mine.yml"
    config.write_text(
        "CartPole-v1:\n  n_timesteps: 64\n  policy: MlpPolicy\n  n_steps: 64\n  kl_coef: lin_3.0\n  ent_coef: lin_0.1\n"
    )
    model = build(make_manager("mine", config=str(config), hyperparams={"weight": 2.0}))
    assert (type(model), model.weight, model.kl_coef) == (Weighted, 2.0, 3.0)


def test_algorithms_that_are_no_classes(make_manager, monkeypatch):
    from rl_zoo3.utils import ALGOS

    monkeypatch.setitem(ALGOS, "ppo", functools.partial(PPO, target_kl=0.02))
    assert build(make_manager("ppo")).target_kl == 0.02
