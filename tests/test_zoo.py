"""The RL Zoo's scripts, as subprocesses in a scratch directory, and the start-up hook that tells the Zoo of this package."""

import argparse
import csv
import json
import os
import pickle
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from masked_support import WAYS, GivesMasks
from stable_baselines3.common.save_util import load_from_zip_file
from support import ACTION_SPACES, OBSERVATION_SPACES, SpaceEnv

from sb3_ppo_variants import NonFiniteUpdateError, PPOClip, PPOFixedKL, PPOKLPen, zoo

HOOK = "_sb3_ppo_variants_hook"
OPT_OUT = "SB3_PPO_VARIANTS_NO_ZOO"
CLASSES = {"ppo_clip": PPOClip, "ppo_fixedkl": PPOFixedKL, "ppo_klpen": PPOKLPen}
ENV_ID = "CartPole-v1"
SHORT = ["--env", ENV_ID, "--num-threads", "1", "--seed", "1", "--device", "cpu", "--eval-freq", "-1"]

# Runs several of the Zoo's scripts in one process, each as `python -m` does, as importing the Zoo takes most of the time.
# Trials of searches have numbers at the small end of the ranges
RUN_MODULES = """
import json, optuna, runpy, sys
suggest_int = optuna.Trial.suggest_int
optuna.Trial.suggest_int = lambda self, name, low, high: suggest_int(self, name, low + 1, low + 2)
for module, arguments in json.loads(sys.argv[1]):
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def python(*arguments, cwd, env=None, check=True):
    """Run Python in a scratch directory as a user would who has installed this package."""
    bin_dir = str(Path(sys.executable).parent)
    environ = {name: value for name, value in os.environ.items() if name not in (OPT_OUT, "PYTHONPATH", "PYTHONWARNINGS")}
    environ |= {"PATH": bin_dir + os.pathsep + environ.get("PATH", ""), "MPLBACKEND": "Agg", "SDL_VIDEODRIVER": "dummy"}
    environ |= {"OMP_NUM_THREADS": "1", **(env or {})}
    command = [sys.executable, *arguments]
    result = subprocess.run(command, cwd=cwd, env=environ, text=True, capture_output=True, timeout=300)
    assert result.returncode == 0 or not check, result.stdout + result.stderr
    return result


def run_modules(commands, cwd):
    """The output of several of the Zoo's modules, given by name and arguments."""
    return python("-c", RUN_MODULES, json.dumps(commands), cwd=cwd).stdout


@pytest.fixture(scope="session", autouse=True)
def _hook_is_installed(tmp_path_factory):
    active = python("-c", f"import sys; print({HOOK!r} in sys.modules)", cwd=tmp_path_factory.mktemp("hook")).stdout
    if active != "True\n":
        pytest.fail("The start-up hook is not installed: run `pip install -e .`", pytrace=False)


def saved_model(cwd, algo, run_id=1, logs="logs"):
    return cwd / logs / algo / f"{ENV_ID}_{run_id}" / f"{ENV_ID}.zip"


EVALUATED = ["--eval-freq", "256", "--eval-episodes", "2"]
CONF = f"{ENV_ID}:\n  n_timesteps: 128\n  policy: MlpPolicy\n  n_steps: 64\n  kl_target: lin_0.04\n  clip_range: null\n"
PARAMS = ["kl_coef:'lin_4.0'", "ent_coef:'lin_0.02'", "vf_coef:'lin_0.5'", "clip_range:None", "max_grad_norm:None"]
# Targets that every update exceeds: beta doubles each time, from 1, and the step size is divided by 1.5, from 3e-4
TARGETS = ["kl_target:1e-12", "learning_rate:'adaptive_1e-12'", "n_epochs:2"]
SEARCH = ["--algo", "ppo_klpen", *SHORT, "-n", "128", "-optimize", "--n-trials", "2", "--sampler", "random"]
SEARCH += ["--pruner", "none", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots", "-params", "n_envs:1"]
STUDY = ["--storage", "study.log", "--study-name", "study"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A directory with logs/ of two trainings of each algorithm (one is too few for the Zoo's plot_from_file), and with others
    of searches and other settings; and what each has printed."""
    cwd = tmp_path_factory.mktemp("trained")
    (cwd / "mine.yml").write_text(CONF)
    continued = ["--algo", "ppo_klpen", *SHORT, "-n", "512", "-f", "continued", "-params", *TARGETS]
    commands = [
        *(("rl_zoo3.train", ["--algo", algo, *SHORT, "-n", "512", *EVALUATED]) for algo in CLASSES for _ in range(2)),
        ("rl_zoo3.train", [*SEARCH, *STUDY, "-f", "plain"]),
        ("rl_zoo3.train", [*SEARCH, "clip_range:'lin_0.2'", "-f", "clipped"]),
        # Train with what a trial has found
        ("rl_zoo3.train", ["--algo", "ppo_klpen", *SHORT, "-n", "64", "--trial-id", "1", *STUDY, "-f", "found"]),
        ("rl_zoo3.cli", ["train", "--algo", "ppo_klpen", *SHORT, "-conf", "mine.yml", "-f", "conf"]),
        ("rl_zoo3.train", ["--algo", "ppo_fixedkl", *SHORT, "-n", "512", "-f", "params", "-params", *PARAMS]),
        ("rl_zoo3.train", continued),
        ("rl_zoo3.train", [*continued, "-i", str(saved_model(cwd, "ppo_klpen", logs="continued"))]),
    ]
    outputs = run_modules(commands, cwd).split("Loading hyperparameters from: ")[1:]
    assert len(outputs) == len(commands)
    return cwd, outputs


@pytest.mark.parametrize("algo", CLASSES)
def test_train_saves_a_model_of_the_class(trained, algo):
    cwd, outputs = trained
    used = Path(outputs[2 * list(CLASSES).index(algo)].splitlines()[0])
    # By content, as the tests may import the source tree and the Zoo what is installed
    assert used.read_text() == zoo.hyperparams_path(algo).read_text()
    model = CLASSES[algo].load(saved_model(cwd, algo))
    assert (type(model), model.num_timesteps) == (CLASSES[algo], 512)
    assert (model.n_steps, model.n_epochs, model.gae_lambda) == (32, 20, 0.8)
    config = (saved_model(cwd, algo).with_suffix("") / "config.yml").read_text()
    assert {"ppo_clip": "- lin_0.2", "ppo_fixedkl": "- 3.0", "ppo_klpen": "- lin_0.01"}[algo] in config


def test_conf_and_params_take_schedules_and_none(trained):
    cwd, (*_, conf, params, _, _) = trained
    assert conf.startswith("mine.yml\n")
    # The first update is made at half time
    assert re.findall(r"kl_target +\| (\S+)", conf) == ["0.02"]
    assert re.findall(r"kl_coef +\| (\S+)", params) == ["2"]
    model = PPOFixedKL.load(saved_model(cwd, "ppo_fixedkl", logs="params"))
    assert model.clip_range is model.max_grad_norm is None


def test_continued_training_goes_on_with_beta_and_step_size(trained):
    # Two updates of 256 steps each: 3e-4 / 1.5^2, 3e-4 / 1.5^4
    for run_id, beta, step_size in ((1, 4.0, 1.3333e-4), (2, 16.0, 5.9259e-5)):
        data, _, _ = load_from_zip_file(saved_model(trained[0], "ppo_klpen", run_id, "continued"))
        assert data is not None
        assert (data["kl_coef"], data["adapted_learning_rate"]) == (beta, pytest.approx(step_size, rel=1e-4))


def test_enjoy_video_plots_and_benchmark(trained, tmp_path):
    cwd, _ = trained
    # The Zoo's benchmark runs `python enjoy.py`, which it has in the root of its repository
    (cwd / "enjoy.py").write_text("from rl_zoo3.enjoy import enjoy\n\nenjoy()\n")
    shutil.copytree(saved_model(cwd, "ppo_klpen").parent, cwd / "one" / "ppo_klpen" / f"{ENV_ID}_1")
    own, where = ["--env", ENV_ID, "-f", "logs"], ["-e", ENV_ID, "-f", "logs"]
    benchmark = ["--log-dir", "one", "--benchmark-dir", "benchmark", "--no-hub", "-n", "200", "--num-threads", "1"]
    commands = [
        *(("rl_zoo3.enjoy", ["--algo", algo, *own, "--no-render", "-n", "600", "--device", "cpu"]) for algo in CLASSES),
        ("rl_zoo3.record_video", ["--algo", "ppo_fixedkl", *own, "-n", "20", "-o", str(tmp_path)]),
        ("rl_zoo3.plots.plot_train", ["-a", "ppo_klpen", *where]),
        ("rl_zoo3.plots.all_plots", ["-a", *CLASSES, *where, "--no-million", "--no-display", "-o", "results"]),
        ("rl_zoo3.plots.plot_from_file", ["-i", "results.pkl"]),
        ("rl_zoo3.benchmark", benchmark),
    ]
    output = run_modules(commands, cwd)
    assert output.count("Mean reward") >= 3
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]
    assert "keys: ['PPO_CLIP-logs', 'PPO_FIXEDKL-logs', 'PPO_KLPEN-logs']" in output
    # The table of all_plots, and again that of plot_from_file
    assert output.count(f"|{ENV_ID} |") >= 2
    rows = [row for row in (cwd / "benchmark.md").read_text().splitlines() if ENV_ID in row]
    assert [row.split("|")[1].strip() for row in rows] == ["ppo_klpen"]


def columns(report):
    with report.open() as file:
        names = next(csv.reader(file))
    return {name.removeprefix("params_") for name in names if name.startswith("params_")}


def test_hyperparameter_search(trained):
    cwd, _ = trained
    plain, clipped = (columns(next((cwd / logs / "ppo_klpen").glob("report_*.csv"))) for logs in ("plain", "clipped"))
    assert {"learning_rate", "kl_target", "init_kl_coef"} <= plain
    assert clipped - plain == {"clip_range"}
    assert saved_model(cwd, "ppo_klpen", logs="found").is_file()


def test_a_seed_gives_the_trials_of_the_zoos_ppo(exp_manager):
    import optuna
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER

    def trials(algo):
        # The first three at random, the others by what those have found
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(n_startup_trials=3, seed=1))
        found = []
        for number in range(6):
            trial = study.ask()
            found.append((HYPERPARAMS_SAMPLER[algo](trial, 1, 1, {}), trial.params))
            study.tell(trial, float(number % 3))
        return found

    theirs = trials("ppo")
    assert trials("ppo_clip") == theirs
    for algo, own in (("ppo_fixedkl", {"kl_coef"}), ("ppo_klpen", {"kl_target", "init_kl_coef"})):
        # beta and d_targ are drawn last
        found = trials(algo)[0][1]
        assert found.items() > theirs[0][1].items()
        assert found.keys() - theirs[0][1].keys() == own


def test_registering_again_changes_nothing(exp_manager):
    from rl_zoo3 import hyperparams_opt, utils

    assert pickle.loads(pickle.dumps(exp_manager.ExperimentManager)) is exp_manager.ExperimentManager
    before = (exp_manager.ExperimentManager, dict(utils.ALGOS), dict(hyperparams_opt.HYPERPARAMS_SAMPLER))
    zoo.register()
    assert (exp_manager.ExperimentManager, utils.ALGOS, hyperparams_opt.HYPERPARAMS_SAMPLER) == before
    assert set(CLASSES) <= set(hyperparams_opt.HYPERPARAMS_CONVERTER)


def test_experiment_manager_is_the_zoos_for_other_algorithms(exp_manager, tmp_path):
    ours = exp_manager.ExperimentManager
    hyperparams = {"n_timesteps": 1, "policy": "MlpPolicy", "clip_range": "lin_0.1", "ent_coef": "lin_0.1", "unknown": 1}

    def manager(cls):
        return cls(argparse.Namespace(), "ppo", ENV_ID, str(tmp_path), verbose=0)

    results = [str(manager(cls)._preprocess_hyperparams(dict(hyperparams))) for cls in (ours, ours.__mro__[1])]
    assert results[0] == results[1]


def test_search_prunes_a_trial_that_blows_up(exp_manager, tmp_path, monkeypatch):
    import optuna

    def blow_up(self):
        raise NonFiniteUpdateError("blown up")

    monkeypatch.setattr(PPOKLPen, "train", blow_up)
    kwargs = {"n_timesteps": 8, "optimize_hyperparameters": True, "seed": 1, "hyperparams": {"n_envs": 1}}
    manager = exp_manager.ExperimentManager(argparse.Namespace(), "ppo_klpen", ENV_ID, str(tmp_path), **kwargs)
    manager.setup_experiment()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    # One rollout, short enough
    study.enqueue_trial({"n_steps_pow": 5, "batch_size_pow": 5})
    study.optimize(manager.objective, n_trials=1)
    assert [trial.state.name for trial in study.trials] == ["PRUNED"]


class Drawn(SpaceEnv):
    """An environment with a picture for videos."""

    metadata: ClassVar[dict] = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(self, render_mode=None):
        super().__init__(OBSERVATION_SPACES["box"], ACTION_SPACES["multidiscrete"])
        self.render_mode = render_mode

    def render(self):
        return np.zeros((16, 16, 3), np.uint8)


@pytest.fixture
def masked_manager(exp_manager, tmp_path, monkeypatch):
    """Make an experiment manager on an environment that gives masks in some way, and accepts no invalid action."""

    def make(way, **kwargs):
        env_id = f"Masked{way}-v0"
        spec = EnvSpec(env_id, lambda render_mode=None: GivesMasks(Drawn(render_mode), way))
        monkeypatch.setitem(gym.registry, env_id, spec)
        config = tmp_path / "mine.yml"
        values = "n_timesteps: 128, n_steps: 64, n_envs: 2, policy: MaskableMlpPolicy, normalize: false"
        config.write_text(f"{env_id}: {{{values}}}")
        kwargs |= {"config": str(config), "verbose": 0, "seed": 1, "device": "cpu"}
        return exp_manager.ExperimentManager(argparse.Namespace(env_kwargs=None), "ppo_klpen", env_id, str(tmp_path), **kwargs)

    return make


@pytest.mark.parametrize("way", WAYS)
def test_masks_in_training_evaluation_enjoy_and_video(masked_manager, way, tmp_path, monkeypatch):
    from rl_zoo3 import enjoy

    manager = masked_manager(way, eval_freq=40, n_eval_episodes=4, n_eval_envs=2, log_interval=1)
    model, _ = manager.setup_experiment()
    manager.learn(model)
    assert model._n_updates == 10
    manager.save_trained_model(model)
    options = ["--algo", "ppo_klpen", "--env", manager.env_name.gym_id, "-f", str(tmp_path), "--stochastic"]
    # Several environments are processes, which take their time to start
    options_of_enjoy = ["--n-envs", "2" if way == "method" else "1", "-n", "100", "--no-render", "--verbose", "0"]
    monkeypatch.setattr(sys, "argv", ["enjoy", *options, *options_of_enjoy])
    enjoy.enjoy()
    if way == "method":
        monkeypatch.setattr(sys, "argv", ["record_video", *options, "-n", "20", "-o", str(tmp_path / "videos")])
        runpy.run_module("rl_zoo3.record_video", run_name="__main__")
        assert [path.suffix for path in (tmp_path / "videos").iterdir()] == [".mp4"]


@pytest.mark.parametrize("way", ["info", "method"])
def test_masks_in_search(masked_manager, way):
    import optuna

    kwargs = {"n_timesteps": 128, "n_eval_episodes": 2, "n_eval_envs": 2, "n_evaluations": 1, "optimize_hyperparameters": True}
    manager = masked_manager(way, **kwargs)
    manager.setup_experiment()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for n_epochs in (1, 5):
        study.enqueue_trial({"n_steps_pow": 5, "batch_size_pow": 5, "n_epochs": n_epochs})
    study.optimize(manager.objective, n_trials=2)
    # An invalid action would have it pruned
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2


# What the Zoo does for algorithms that are not this package's
OTHERS = """
import argparse, json
from rl_zoo3 import exp_manager, hyperparams_opt, utils
tables = [utils.ALGOS, hyperparams_opt.HYPERPARAMS_SAMPLER, hyperparams_opt.HYPERPARAMS_CONVERTER]
own = ("ppo_clip", "ppo_fixedkl", "ppo_klpen")
found = [{name: value.__qualname__ for name, value in table.items() if name not in own} for table in tables]
for algo in ("ppo", "dqn"):
    manager = exp_manager.ExperimentManager(argparse.Namespace(), algo, "CartPole-v1", "logs", device="cpu")
    found += [manager.config, *map(str, manager.setup_experiment()[1].items())]
print("RESULT", json.dumps(found))
"""
REGISTER_BY_HAND = """
import rl_zoo3.train
from sb3_ppo_variants import zoo
assert "ppo_klpen" not in rl_zoo3.ALGOS
zoo.register()
assert rl_zoo3.ALGOS["ppo_klpen"].__name__ == "PPOKLPen"
# Also in a script that was imported before
assert rl_zoo3.train.ExperimentManager is rl_zoo3.exp_manager.ExperimentManager
assert len(rl_zoo3.train.ExperimentManager.__mro__) == 3
"""


@pytest.mark.filterwarnings("ignore")
def test_other_algorithms_are_unchanged_and_opting_out_leaves_the_zoo_alone(exp_manager, tmp_path, monkeypatch, capsys):
    code = OTHERS + REGISTER_BY_HAND
    theirs = python("-W", "ignore", "-c", code, cwd=tmp_path, env={OPT_OUT: "1"}).stdout.split("RESULT ")[1]
    assert len(json.loads(theirs)[0]) >= 12
    # Here the package is registered
    monkeypatch.chdir(tmp_path)
    exec(OTHERS, {})
    assert capsys.readouterr().out.split("RESULT ")[1] == theirs


@pytest.fixture
def packages(tmp_path):
    """Small packages in place of the Zoo and of this one."""
    modules = {"utils": "print('theirs')", "hyperparams_opt": "", "exp_manager": "from rl_zoo3 import hyperparams_opt, utils"}
    for name, files in (
        ("rl_zoo3", modules),
        ("sb3_ppo_variants", {"zoo": "def register_module(name): print('registered', name)"}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        for module, source in files.items():
            (tmp_path / name / f"{module}.py").write_text(source + "\n")
    return tmp_path


HOOK_AT_WORK = """
import importlib.util, sys

class Delegates:
    '''A finder that asks all others, as the hook does.'''
    is_busy = False
    def find_spec(self, name, path=None, target=None):
        if self.is_busy or name != "rl_zoo3.utils": return None
        self.is_busy = True
        try: return importlib.util.find_spec(name)
        finally: self.is_busy = False

sys.meta_path.insert(0, Delegates())
importlib.util.find_spec("rl_zoo3.utils")
print("looked")
import rl_zoo3.exp_manager
print([type(finder).__name__ for finder in sys.meta_path].count("ZooFinder"))
"""


def test_hook_registers_after_each_module_and_leaves(packages):
    registered = [f"registered rl_zoo3.{module}" for module in ("hyperparams_opt", "utils", "exp_manager")]
    lines = python("-c", HOOK_AT_WORK, cwd=packages).stdout.splitlines()
    assert lines == ["looked", registered[0], "theirs", *registered[1:], "0"]
    assert python("-c", "import rl_zoo3.utils", cwd=packages, env={OPT_OUT: "1"}).stdout == "theirs\n"


def test_failures_around_the_hook(packages):
    (packages / "sb3_ppo_variants" / "zoo.py").write_text("raise RuntimeError('broken')\n")
    result = python("-c", "import rl_zoo3.exp_manager", cwd=packages)
    assert result.stdout == "theirs\n"
    assert result.stderr.count("UserWarning") == 1
    assert "not available in the RL Zoo: RuntimeError: broken" in result.stderr
    (packages / "rl_zoo3" / "utils.py").write_text("raise ImportError('theirs')\n")
    result = python("-c", "import rl_zoo3.utils", cwd=packages, check=False)
    assert result.stderr.splitlines()[-1] == "ImportError: theirs"
