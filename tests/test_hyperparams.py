"""The hyperparameters for the RL Zoo: the entries of the YAMLs build their algorithms through the Zoo's own preprocessing."""

import argparse
import functools
import sys
from pathlib import Path
from types import ModuleType

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
# All entries of ppo_clip; those of the others differ by one coefficient, so of them one for each of its values
COEFFICIENTS = {"ppo_fixedkl": "kl_coef", "ppo_klpen": "kl_target"}
ENTRIES = [("ppo_clip", entry) for entry in YAMLS["ppo_clip"]]
for algo, coefficient in COEFFICIENTS.items():
    ENTRIES += [
        (algo, entry) for entry in {str(values.get(coefficient)): entry for entry, values in YAMLS[algo].items()}.values()
    ]
PAPER_TASKS = [
    f"{task}-{version}"
    for task in ("HalfCheetah", "Hopper", "InvertedDoublePendulum", "InvertedPendulum", "Reacher", "Swimmer", "Walker2d")
    for version in ("v4", "v5")
]
IMAGE = spaces.Box(0, 255, (84, 84, 1), np.uint8)
# (part of the id, observations and actions behind the entry's wrappers) of what may not be installed; the first match counts
STUB_SPACES = [
    ("atari", IMAGE, spaces.Discrete(6)),
    ("NotListed", spaces.Box(-1, 1, (4,)), spaces.Discrete(2)),
    ("Taxi", spaces.Discrete(500), spaces.Discrete(6)),
    ("ConnectFour", spaces.Box(0, 1, (84,), np.int8), spaces.Discrete(7)),
    ("CarRacing", IMAGE, spaces.Box(-1, 1, (3,))),
    ("MiniGrid", spaces.Box(0, 255, (2835,), np.uint8), spaces.Discrete(7)),
    ("LunarLanderContinuous", spaces.Box(-1, 1, (8,)), spaces.Box(-1, 1, (2,))),
    ("LunarLander", spaces.Box(-1, 1, (8,)), spaces.Discrete(4)),
    ("BipedalWalker", spaces.Box(-1, 1, (24,)), spaces.Box(-1, 1, (4,))),
    ("Bullet", spaces.Box(-1, 1, (26,)), spaces.Box(-1, 1, (6,))),
    ("-v2", spaces.Box(-1, 1, (11,)), spaces.Box(-1, 1, (3,))),
    ("-v4", spaces.Box(-1, 1, (17,)), spaces.Box(-1, 1, (6,))),
    ("-v5", spaces.Box(-1, 1, (17,)), spaces.Box(-1, 1, (6,))),
]


class StubEnv(SpaceEnv):
    """The spaces of an environment that is not installed."""

    def __init__(self, env_id, render_mode=None):
        super().__init__(*next(stub for stub in STUB_SPACES if stub[0] in env_id)[1:])


class AtariEnvStub(StubEnv):
    """The Zoo knows an Atari game by the name of its class."""


def installed(env_id):
    try:
        gym.make(env_id).close()
    except (gym.error.Error, ImportError):
        return False
    return True


def without_wrappers(base):
    """An experiment manager that leaves out an entry's wrappers, which the stubs' spaces already stand for."""

    class ManagerWithoutWrappers(base):
        def create_envs(self, *args, **kwargs):
            self.env_wrapper = None
            return super().create_envs(*args, **kwargs)

    return ManagerWithoutWrappers


@pytest.fixture
def make_manager(exp_manager, tmp_path, monkeypatch):
    """Make an experiment manager as the Zoo's ``train`` does, on a stub where the environment is not installed."""
    # MuJoCo writes its warnings to a file in the working directory
    monkeypatch.chdir(tmp_path)

    def make(algo, env_id, **kwargs):
        manager_class = exp_manager.ExperimentManager
        if not installed(env_id):
            stub = "AtariEnvStub" if env_id.startswith("atari") else "StubEnv"
            spec = EnvSpec(env_id, entry_point=f"{__name__}:{stub}", kwargs={"env_id": env_id})
            monkeypatch.setitem(gym.registry, env_id, spec)
            for name in ("minigrid", "minigrid.wrappers"):
                module = ModuleType(name)
                module.FlatObsWrapper = gym.Wrapper
                monkeypatch.setitem(sys.modules, name, module)

            manager_class = without_wrappers(manager_class)
        arguments = {"eval_freq": -1, "verbose": 0, "device": "cpu", "seed": 0} | kwargs
        return manager_class(argparse.Namespace(), algo, env_id, str(tmp_path), **arguments)

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
    manager = make_manager(algo, {"default": "NotListed-v0", "atari": "atari/Stub-v0"}.get(entry, entry))
    model = build(manager)

    assert type(model) is zoo.ALGOS[algo]
    assert manager.config == str(zoo.hyperparams_path(algo))
    values = YAMLS[algo][entry]
    assert model.n_envs == values.get("n_envs", 1)
    for key in ("n_steps", "batch_size", "n_epochs", "gamma", "max_grad_norm", "normalize_advantage"):
        if key in values:
            assert getattr(model, key) == values[key]
    schedules = {key: value for key, value in values.items() if isinstance(value, str) and value.startswith("lin_")}
    for key, value in schedules.items():
        schedule = model.lr_schedule if key == "learning_rate" else getattr(model, key)
        assert schedule(0.5) == pytest.approx(float(value.removeprefix("lin_")) / 2)


@pytest.mark.parametrize("algo", ALGOS)
def test_every_environment_of_the_zoos_ppo_is_there(exp_manager, algo):
    theirs = zoo_ppo(exp_manager)
    assert len(theirs) > 40
    assert not set(theirs) - set(YAMLS[algo])
    assert {"default", "atari", *PAPER_TASKS} <= set(YAMLS[algo])
    recurrent = without_velocities(exp_manager)
    assert len(recurrent) == 6
    assert {entry for entry in YAMLS[algo] if "NoVel" in entry} == set(recurrent)
    # What else ppo_lstm has is there with another policy, or is the id of a task that Gymnasium has no longer
    others = {entry for entry in zoo_ppo(exp_manager, "ppo_lstm") if "NoVel" not in entry}
    assert others <= set(YAMLS[algo])


# Table 3, and the best setting of Table 1 for each algorithm
TABLE_3 = {"n_timesteps": 1_000_000, "n_envs": 1, "n_steps": 2048, "learning_rate": 3e-4, "n_epochs": 10, "batch_size": 64}
TABLE_3 |= {"gamma": 0.99, "gae_lambda": 0.95, "ent_coef": 0.0}
TABLE_1 = {"ppo_clip": {"clip_range": 0.2}, "ppo_fixedkl": {"kl_coef": 3.0}, "ppo_klpen": {"kl_target": 0.01}}
TABLE_5 = {"n_timesteps": 10_000_000, "n_envs": 8, "n_steps": 128, "learning_rate": "lin_2.5e-4", "n_epochs": 3}
TABLE_5 |= {"batch_size": 32 * 8, "gamma": 0.99, "gae_lambda": 0.95, "vf_coef": 1.0, "ent_coef": 0.01}


@pytest.mark.parametrize("algo", ALGOS)
def test_papers_tasks_have_table_3_and_atari_table_5(algo):
    for task, expected in (*((task, TABLE_3 | TABLE_1[algo]) for task in PAPER_TASKS), ("atari", TABLE_5)):
        values = YAMLS[algo][task]
        assert {key: values[key] for key in expected} == expected, task
        assert ("clip_range" in values) == (algo == "ppo_clip"), task


def test_table_3_in_the_zoo(make_manager):
    config = str(zoo.hyperparams_path("ppo_clip").parent / "paper" / "table3_mujoco.yml")
    model = build(make_manager("ppo_klpen", "Reacher-v4", config=config, hyperparams={"kl_target": 0.03}))
    assert (model.n_steps, model.batch_size, model.n_epochs, model.kl_target) == (2048, 64, 10, 0.03)
    assert (model.max_grad_norm, model.normalize_advantage, model.vf_coef) == (None, "batch", 1.0)
    assert (model.action_space.high > 1e38).all()


def test_table_4_adapts_the_step_size_and_anneals_the_deviation(make_manager):
    config = zoo.hyperparams_path("ppo_clip").parent / "paper" / "table4_roboschool.yml"
    manager = make_manager("ppo_clip", "HumanoidBulletEnv-v0", config=str(config))
    model = build(manager)
    assert model.learning_rate == AdaptiveLearningRate(kl_target=0.01)
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


@pytest.mark.parametrize("algo", ALGOS)
def test_every_entry_says_where_it_is_from(algo):
    lines = zoo.hyperparams_path(algo).read_text(encoding="utf-8").splitlines()
    entries = [number for number, line in enumerate(lines) if line[:1].isalnum()]
    assert len(entries) == len(YAMLS[algo])
    origins = ("# Carried over from", "# Adapted from", "# From Table", "# Environments without", "# Found here")
    for number in entries:
        assert lines[number - 1].startswith(origins), lines[number]


@pytest.mark.parametrize(
    ("algo", "name", "text", "value"),
    [
        ("ppo_clip", "ent_coef", "lin_0.01", 0.005),
        ("ppo_clip", "vf_coef", "lin_0.5", 0.25),
        ("ppo_clip", "learning_rate", "lin_1e-3", 5e-4),
        ("ppo_clip", "clip_range", "lin_0.3", 0.15),
        ("ppo_clip", "clip_range_vf", "lin_.3", 0.15),
        ("ppo_fixedkl", "kl_coef", "lin_4", 2.0),
        ("ppo_fixedkl", "clip_range", "lin_0.3", 0.15),
        ("ppo_klpen", "kl_target", "lin_0.02", 0.01),
    ],
)
def test_string_schedules(make_manager, algo, name, text, value):
    model = build(make_manager(algo, "CartPole-v1", hyperparams={name: text}))
    if name == "learning_rate":
        assert model.lr_schedule(0.5) == pytest.approx(value)
    else:
        model._current_progress_remaining = 0.5
        assert model.coefficients()[name] == pytest.approx(value)


@pytest.mark.parametrize(
    ("algo", "name"),
    [("ppo_clip", "clip_range_vf"), ("ppo_fixedkl", "clip_range"), ("ppo_klpen", "clip_range"), ("ppo_clip", "target_kl")],
)
def test_null_turns_a_coefficient_off(make_manager, algo, name):
    assert getattr(build(make_manager(algo, "CartPole-v1", hyperparams={name: None})), name) is None


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
        build(make_manager(algo, "CartPole-v1", hyperparams=hyperparams))


def test_target_kl_is_no_target_of_beta(make_manager):
    model = build(make_manager("ppo_klpen", "HalfCheetah-v4", hyperparams={"target_kl": 0.02}))
    assert (model.target_kl, model.kl_target) == (0.02, 0.01)


def test_objects_in_a_python_file(make_manager, tmp_path):
    """The Zoo itself takes no schedules that are objects."""
    config = tmp_path / "mine.py"
    config.write_text(
        "from sb3_ppo_variants import AdaptiveLearningRate\n"
        "hyperparams = {'CartPole-v1': {'policy': 'MlpPolicy', 'n_timesteps': 64, 'n_steps': 64,\n"
        "    'learning_rate': AdaptiveLearningRate(0.02, initial=1e-3)}}\n"
    )
    assert build(make_manager("ppo_clip", "CartPole-v1", config=str(config))).adapted_learning_rate == 1e-3


def test_beta_when_training_continues(make_manager, tmp_path):
    """beta goes on, whatever the first one is to be, unless another one is given."""
    build(make_manager("ppo_klpen", "CartPole-v1", hyperparams={"init_kl_coef": 2.0})).save(tmp_path / "model.zip")

    def beta(algo, **hyperparams):
        path = str(tmp_path / "model.zip")
        return float(build(make_manager(algo, "CartPole-v1", trained_agent=path, hyperparams=hyperparams)).kl_coef)

    assert beta("ppo_klpen", init_kl_coef=4.0) == 2.0
    assert beta("ppo_klpen", kl_coef=0.5) == 0.5
    assert beta("ppo_fixedkl", kl_coef=0.5) == 0.5


def test_models_of_other_algorithms_go_on(make_manager, tmp_path):
    """With the hyperparameters of the entry, and without what means something else there."""
    for saved in ("ppo", "ppo_clip", "ppo_fixedkl", "ppo_klpen"):
        hyperparams = {"kl_coef": "lin_3.0"} if saved == "ppo_fixedkl" else {}
        path = tmp_path / saved / "model.zip"
        build(make_manager(saved, "CartPole-v1", hyperparams=hyperparams)).save(path)
        for algo, expected in {"ppo_clip": (0.2, None), "ppo_fixedkl": (None, None), "ppo_klpen": (None, 0.01)}.items():
            model, _ = make_manager(algo, "CartPole-v1", trained_agent=str(path)).setup_experiment()
            assert tuple(map(model.coefficients().get, ("clip_range", "kl_target"))) == expected
            model.learn(512)
            model.learn(256)
            model.env.close()
            model.save(tmp_path / "again.zip")
            again = build(make_manager(algo, "CartPole-v1", trained_agent=str(tmp_path / "again.zip")))
            assert type(again) is type(model)


class Weighted(PPOFixedKL):
    """A user's own algorithm."""

    def __init__(self, *args, weight=1.0, **kwargs):
        self.weight = weight
        super().__init__(*args, **kwargs)


@pytest.mark.parametrize("algo", ["ppo_fixedkl", "mine"])
def test_own_algorithms(make_manager, algo, tmp_path, monkeypatch):
    from rl_zoo3.utils import ALGOS

    monkeypatch.setitem(ALGOS, algo, Weighted)
    config = tmp_path / "mine.yml"
    config.write_text(
        "CartPole-v1:\n  n_timesteps: 64\n  policy: MlpPolicy\n  n_steps: 64\n  kl_coef: lin_3.0\n  ent_coef: lin_0.1\n"
    )
    model = build(make_manager(algo, "CartPole-v1", config=str(config), hyperparams={"weight": 2.0}))
    assert (type(model), model.weight, model.kl_coef) == (Weighted, 2.0, 3.0)


def test_algorithms_that_are_no_classes(make_manager, monkeypatch):
    from rl_zoo3.utils import ALGOS

    monkeypatch.setitem(ALGOS, "ppo", functools.partial(PPO, target_kl=0.02))
    assert build(make_manager("ppo", "CartPole-v1")).target_kl == 0.02
