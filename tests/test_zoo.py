"""The RL Zoo's scripts, as subprocesses in a scratch directory, and the start-up hook that tells the Zoo of this package."""

import argparse
import csv
import importlib.util
import inspect
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.envs.registration import EnvSpec
from masked_support import WAYS, GivesMasks
from stable_baselines3.common.save_util import load_from_zip_file
from support import ACTION_SPACES, OBSERVATION_SPACES, SpaceEnv

from sb3_ppo_variants import NonFiniteUpdateError, PPOClip, PPOFixedKL, PPOKLPen, ProximalPolicyOptimization, zoo

HOOK = "_sb3_ppo_variants_hook"
OPT_OUT = "SB3_PPO_VARIANTS_NO_ZOO"
CLASSES: dict[str, type[ProximalPolicyOptimization]] = {"ppo_clip": PPOClip, "ppo_fixedkl": PPOFixedKL, "ppo_klpen": PPOKLPen}
ENV_ID = "CartPole-v1"
# Two updates of 256 steps
SHORT = ["--env", ENV_ID, "-n", "512", "--num-threads", "1", "--seed", "1", "--device", "cpu", "--eval-freq", "-1"]

# Runs several of the Zoo's scripts in one process, each as `python -m` does, as importing the Zoo takes most of the time
RUN_MODULES = """
import json, runpy, sys
for module, arguments in json.loads(sys.argv[1]):
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def run(
    arguments: Sequence[str], cwd: Path, env: dict[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command in a scratch directory as a user would who has installed this package."""
    bin_dir = str(Path(sys.executable).parent)
    environ = {name: value for name, value in os.environ.items() if name not in (OPT_OUT, "PYTHONPATH", "PYTHONWARNINGS")}
    environ |= {"PATH": bin_dir + os.pathsep + environ.get("PATH", ""), "MPLBACKEND": "Agg", "SDL_VIDEODRIVER": "dummy"}
    environ["OMP_NUM_THREADS"] = "1"
    result = subprocess.run(arguments, cwd=cwd, env=environ | (env or {}), text=True, capture_output=True, timeout=300)
    if check:
        assert result.returncode == 0, result.stdout + result.stderr
    return result


def python(*arguments: str, cwd: Path, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, *arguments], cwd, **kwargs)


def run_modules(commands: Sequence[tuple[str, Sequence[str]]], cwd: Path, first: str = "") -> subprocess.CompletedProcess[str]:
    """
    Run several of the Zoo's modules.

    :param commands: name and arguments of each
    :param cwd: where
    :param first: code to run before
    """
    return python("-c", first + RUN_MODULES, json.dumps(commands), cwd=cwd)


@pytest.fixture(scope="session", autouse=True)
def _hook_is_installed(tmp_path_factory: pytest.TempPathFactory) -> None:
    active = python("-c", f"import sys; print({HOOK!r} in sys.modules)", cwd=tmp_path_factory.mktemp("hook")).stdout
    if active != "True\n":
        pytest.fail("The start-up hook is not installed: run `pip install -e .`", pytrace=False)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with logs/ of two trainings of each algorithm (one is too few for the Zoo's plot_from_file)."""
    cwd = tmp_path_factory.mktemp("trained")
    short = [*SHORT[:-1], "256", "--eval-episodes", "2"]
    algos = [algo for algo in CLASSES for _ in range(2)]
    output = run_modules([("rl_zoo3.train", ["--algo", algo, *short]) for algo in algos], cwd).stdout
    used = re.findall(r"Loading hyperparameters from: (.*)", output)
    # By content, as the tests may import the source tree and the Zoo what is installed
    assert [Path(path).read_text() for path in used] == [zoo.hyperparams_path(algo).read_text() for algo in algos]
    return cwd


def saved_model(cwd: Path, algo: str, run_id: int = 1, logs: str = "logs") -> Path:
    return cwd / logs / algo / f"{ENV_ID}_{run_id}" / f"{ENV_ID}.zip"


@pytest.mark.parametrize("algo", CLASSES)
def test_train_saves_a_model_of_the_class(trained: Path, algo: str) -> None:
    model = CLASSES[algo].load(saved_model(trained, algo))
    assert type(model) is CLASSES[algo]
    assert model.num_timesteps == 512
    assert (model.n_steps, model.n_epochs, model.gae_lambda) == (32, 20, 0.8)
    config = (saved_model(trained, algo).with_suffix("") / "config.yml").read_text()
    assert {"ppo_clip": "- lin_0.2", "ppo_fixedkl": "- 3.0", "ppo_klpen": "- lin_0.01"}[algo] in config


def test_console_script_and_conf(tmp_path: Path) -> None:
    conf = tmp_path / "mine.yml"
    conf.write_text(
        f"{ENV_ID}:\n  n_timesteps: 128\n  policy: MlpPolicy\n  n_steps: 64\n  kl_target: lin_0.04\n  clip_range: null\n"
    )
    arguments = ["--algo", "ppo_klpen", "--env", ENV_ID, "-conf", str(conf), "--eval-freq", "-1", "--device", "cpu"]
    script = Path(sys.executable).with_name("rl_zoo3")
    result = run([str(script), "train", *arguments], tmp_path)
    assert f"Loading hyperparameters from: {conf}" in result.stdout
    # The first update is made at half time
    assert re.findall(r"kl_target +\| (\S+)", result.stdout) == ["0.02"]


def test_params_take_schedules_and_none(tmp_path: Path) -> None:
    params = ["kl_coef:'lin_4.0'", "ent_coef:'lin_0.02'", "vf_coef:'lin_0.5'", "clip_range:None", "max_grad_norm:None"]
    result = python("-m", "rl_zoo3.train", "--algo", "ppo_fixedkl", *SHORT, "-params", *params, cwd=tmp_path)
    assert re.findall(r"kl_coef +\| (\S+)", result.stdout) == ["2"]
    model = PPOFixedKL.load(saved_model(tmp_path, "ppo_fixedkl"))
    assert model.clip_range is None
    assert model.max_grad_norm is None


def test_continued_training_goes_on_with_beta_and_step_size(tmp_path: Path) -> None:
    # Targets that every update exceeds: beta doubles each time, from 1, and the step size is divided by 1.5, from 3e-4
    targets = ["kl_target:1e-12", "learning_rate:'adaptive_1e-12'"]
    train = ["--algo", "ppo_klpen", *SHORT, "-params", *targets, "n_epochs:2"]
    model = saved_model(tmp_path, "ppo_klpen")
    run_modules([("rl_zoo3.train", train), ("rl_zoo3.train", [*train, "-i", str(model)])], tmp_path)
    data, _, _ = load_from_zip_file(model)
    continued, _, _ = load_from_zip_file(saved_model(tmp_path, "ppo_klpen", run_id=2))
    assert data is not None
    assert continued is not None
    # Two updates each: 3e-4 / 1.5^2, 3e-4 / 1.5^4
    assert (data["kl_coef"], data["adapted_learning_rate"]) == (4.0, pytest.approx(1.3333e-4, rel=1e-4))
    assert (continued["kl_coef"], continued["adapted_learning_rate"]) == (16.0, pytest.approx(5.9259e-5, rel=1e-4))


def test_benchmark(trained: Path, tmp_path: Path) -> None:
    # The Zoo's benchmark runs `python enjoy.py`, which it has in the root of its repository
    (tmp_path / "enjoy.py").write_text("from rl_zoo3.enjoy import enjoy\n\nenjoy()\n")
    shutil.copytree(trained / "logs" / "ppo_klpen" / f"{ENV_ID}_1", tmp_path / "logs" / "ppo_klpen" / f"{ENV_ID}_1")
    arguments = ["--log-dir", "logs", "--benchmark-dir", "benchmark", "--no-hub", "-n", "600", "--num-threads", "1"]
    python("-m", "rl_zoo3.benchmark", *arguments, cwd=tmp_path)
    rows = [row for row in (tmp_path / "benchmark.md").read_text().splitlines() if ENV_ID in row]
    assert [row.split("|")[1].strip() for row in rows] == ["ppo_klpen"]


def test_enjoy_video_and_plots(trained: Path, tmp_path: Path) -> None:
    own = ["--env", ENV_ID, "-f", "logs"]
    where = ["-e", ENV_ID, "-f", "logs"]
    commands = [
        *(("rl_zoo3.enjoy", ["--algo", algo, *own, "--no-render", "-n", "600", "--device", "cpu"]) for algo in CLASSES),
        ("rl_zoo3.record_video", ["--algo", "ppo_fixedkl", *own, "-n", "20", "-o", str(tmp_path)]),
        ("rl_zoo3.plots.plot_train", ["-a", "ppo_klpen", *where]),
        ("rl_zoo3.plots.all_plots", ["-a", *CLASSES, *where, "--no-million", "--no-display", "-o", "results"]),
        ("rl_zoo3.plots.plot_from_file", ["-i", "results.pkl"]),
    ]
    output = run_modules(commands, trained).stdout
    assert output.count("Mean reward") == 3
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]
    assert "keys: ['PPO_CLIP-logs', 'PPO_FIXEDKL-logs', 'PPO_KLPEN-logs']" in output
    # The table of all_plots, and again that of plot_from_file
    assert output.count(f"|{ENV_ID} |") == 2


# The small end of the ranges, so that a trial is short
SMALL_TRIALS = """
import optuna
suggest_int = optuna.Trial.suggest_int
optuna.Trial.suggest_int = lambda self, name, low, high: suggest_int(self, name, low + 1, low + 2)
"""


def columns(report: Path) -> set[str]:
    with report.open() as file:
        names = next(csv.reader(file))
    return {name.removeprefix("params_") for name in names if name.startswith("params_")}


def test_hyperparameter_search(tmp_path: Path) -> None:
    search = ["--env", ENV_ID, "-n", "128", "--seed", "1", "--device", "cpu", "--num-threads", "1", "-optimize"]
    search += ["--n-trials", "2", "--sampler", "random", "--pruner", "none", "--n-evaluations", "1", "--eval-episodes", "1"]
    search += ["--no-optim-plots"]
    one_env = ["-params", "n_envs:1"]
    study = ["--storage", "study.log", "--study-name", "study"]
    # (log folder, arguments)
    commands = [
        ("plain", ["--algo", "ppo_clip", *search, *one_env]),
        ("plain", ["--algo", "ppo_fixedkl", *search, *one_env]),
        ("plain", ["--algo", "ppo_klpen", *search, *one_env, *study]),
        ("clipped", ["--algo", "ppo_fixedkl", *search, *one_env, "clip_range:0.2"]),
        ("clipped", ["--algo", "ppo_klpen", *search, *one_env, "clip_range:'lin_0.2'"]),
        # Train with what a trial has found
        ("found", ["--algo", "ppo_klpen", "--env", ENV_ID, "-n", "64", "--eval-freq", "-1", "--trial-id", "1", *study]),
    ]
    modules = [("rl_zoo3.train", [*arguments, "-f", logs]) for logs, arguments in commands]
    run_modules(modules, tmp_path, first=SMALL_TRIALS)

    shared = {"batch_size_pow", "n_steps_pow", "one_minus_gamma", "one_minus_gae_lambda", "learning_rate", "ent_coef"}
    shared |= {"n_epochs", "max_grad_norm", "net_arch", "activation_fn"}
    own = {"ppo_clip": {"clip_range"}, "ppo_fixedkl": {"kl_coef"}, "ppo_klpen": {"kl_target", "init_kl_coef"}}
    searched = {
        (logs, algo): columns(next((tmp_path / logs / algo).glob("report_*.csv")))
        for logs in ("plain", "clipped")
        for algo in CLASSES
        if (logs, algo) != ("clipped", "ppo_clip")
    }
    assert searched == {
        (logs, algo): shared | own[algo] | ({"clip_range"} if logs == "clipped" else set()) for logs, algo in searched
    }
    assert saved_model(tmp_path, "ppo_klpen", logs="found").is_file()


def test_a_seed_gives_the_trials_of_the_zoos_ppo(exp_manager: ModuleType) -> None:
    import optuna
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER

    def trials(algo: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        # The first three at random, the others by what those have found
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(n_startup_trials=3, seed=1))
        found = []
        for number in range(6):
            trial = study.ask()
            trial.set_user_attr(zoo.CLIPPING, True)
            found.append((HYPERPARAMS_SAMPLER[algo](trial, 1, 1, {}), trial.params))
            study.tell(trial, float(number % 3))
        return found

    theirs = trials("ppo")
    assert trials("ppo_clip") == theirs
    for algo in ("ppo_fixedkl", "ppo_klpen"):
        # beta and d_targ are drawn last
        assert trials(algo)[0][1].items() > theirs[0][1].items()


class TestExperimentManager:
    def test_pickles_by_reference(self, exp_manager: ModuleType) -> None:
        assert pickle.loads(pickle.dumps(exp_manager.ExperimentManager)) is exp_manager.ExperimentManager

    def test_registering_again_changes_nothing(self, exp_manager: ModuleType) -> None:
        from rl_zoo3 import hyperparams_opt, utils

        before = (exp_manager.ExperimentManager, dict(utils.ALGOS), dict(hyperparams_opt.HYPERPARAMS_SAMPLER))
        zoo.register()
        assert (exp_manager.ExperimentManager, utils.ALGOS, hyperparams_opt.HYPERPARAMS_SAMPLER) == before
        assert set(CLASSES) <= set(hyperparams_opt.HYPERPARAMS_CONVERTER)

    @pytest.mark.parametrize("by_position", [True, False])
    @pytest.mark.parametrize("algo", ["ppo_klpen", "ppo"])
    def test_config(self, exp_manager: ModuleType, algo: str, by_position: bool, tmp_path: Path) -> None:
        manager_class = exp_manager.ExperimentManager
        default = manager_class(argparse.Namespace(), algo, ENV_ID, str(tmp_path)).config
        base = inspect.signature(manager_class.__mro__[1].__init__)
        given: list[Any] = [argparse.Namespace(), algo, ENV_ID, str(tmp_path)]
        if by_position:
            given += [p.default for p in base.parameters.values()][5 : list(base.parameters).index("config")]
            config = manager_class(*given, "mine.yml").config
        else:
            config = manager_class(*given, config="mine.yml").config
        assert config == "mine.yml"
        own = {"ppo_klpen": zoo.hyperparams_path("ppo_klpen")}
        assert Path(default) == own.get(algo, Path(str(exp_manager.__file__)).parent / "hyperparams" / "ppo.yml")

    @pytest.mark.parametrize(
        "hyperparams", [{"clip_range": None}, {"ent_coef": "lin_0.1"}, {"learning_rate": "exp_0.1"}, {"unknown": 1}]
    )
    def test_other_algorithms_are_preprocessed_as_before(
        self, exp_manager: ModuleType, hyperparams: dict[str, Any], tmp_path: Path
    ) -> None:
        def outcome(manager_class: Any) -> Any:
            manager = manager_class(argparse.Namespace(), "ppo", ENV_ID, str(tmp_path), verbose=0)
            try:
                return repr(manager._preprocess_hyperparams({"n_timesteps": 1, "policy": "MlpPolicy"} | hyperparams))
            except ValueError as error:
                return repr(error)

        assert outcome(exp_manager.ExperimentManager) == outcome(exp_manager.ExperimentManager.__mro__[1])

    def test_search_prunes_a_trial_that_blows_up(
        self, exp_manager: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import optuna

        def blow_up(self: Any) -> None:
            raise NonFiniteUpdateError("blown up")

        monkeypatch.setattr(PPOKLPen, "train", blow_up)
        manager = exp_manager.ExperimentManager(
            argparse.Namespace(), "ppo_klpen", ENV_ID, str(tmp_path), n_timesteps=8, optimize_hyperparameters=True, seed=1
        )
        manager.setup_experiment()
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
        # One rollout, short enough
        study.enqueue_trial({"n_steps_pow": 5, "batch_size_pow": 8})
        study.optimize(manager.objective, n_trials=1)
        assert [trial.state.name for trial in study.trials] == ["PRUNED"]


@pytest.mark.parametrize("way", WAYS)
def test_masks_in_training_evaluation_and_enjoy(
    exp_manager: ModuleType, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rl_zoo3 import enjoy

    env_id = f"Masked{way}-v0"

    def make(render_mode: str | None = None) -> gym.Env:
        return GivesMasks(SpaceEnv(OBSERVATION_SPACES["box"], ACTION_SPACES["multidiscrete"]), way)

    # The environment accepts no invalid action
    monkeypatch.setitem(gym.registry, env_id, EnvSpec(env_id, entry_point=make))
    config = tmp_path / "mine.yml"
    config.write_text(f"{env_id}: {{n_timesteps: 128, n_steps: 64, n_envs: 2, policy: MaskableMlpPolicy, normalize: false}}")
    manager = exp_manager.ExperimentManager(
        *(argparse.Namespace(env_kwargs=None), "ppo_klpen", env_id, str(tmp_path)),
        config=str(config),
        eval_freq=40,
        n_eval_episodes=4,
        n_eval_envs=2,
        log_interval=1,
        verbose=0,
        seed=1,
        device="cpu",
    )
    model, _ = manager.setup_experiment()
    manager.learn(model)
    assert model._n_updates == 10
    manager.save_trained_model(model)
    options = ["--algo", "ppo_klpen", "--env", env_id, "-f", str(tmp_path), "-n", "100", "--no-render", "--verbose", "0"]
    monkeypatch.setattr(sys, "argv", ["enjoy", *options, "--n-envs", "2", "--stochastic", "--device", "cpu"])
    enjoy.enjoy()


# What the Zoo does for algorithms that are not this package's
OTHERS = """
import argparse, json, sys
from rl_zoo3 import exp_manager, hyperparams_opt, utils
own = ("ppo_clip", "ppo_fixedkl", "ppo_klpen")
dicts = [utils.ALGOS, hyperparams_opt.HYPERPARAMS_SAMPLER, hyperparams_opt.HYPERPARAMS_CONVERTER]
tables = [{name: value.__qualname__ for name, value in table.items() if name not in own} for table in dicts]
numbers = []
for algo in ("ppo", "a2c", "dqn"):
    manager = exp_manager.ExperimentManager(
        argparse.Namespace(), algo, "CartPole-v1", sys.argv[1], n_timesteps=512, eval_freq=-1, log_interval=-1, seed=1
    )
    model, config = manager.setup_experiment()
    manager.learn(model)
    numbers += [manager.config, dict(config), sum(p.double().sum().item() for p in model.policy.parameters())]
print("RESULT", json.dumps([tables, numbers]))
"""


def test_other_algorithms_are_unchanged(tmp_path: Path) -> None:
    results = []
    for number, env in enumerate([{}, {OPT_OUT: "1"}]):
        output = python("-W", "ignore", "-c", OTHERS, str(tmp_path / str(number)), cwd=tmp_path, env=env).stdout
        results.append(json.loads(output.split("RESULT ")[1]))
    assert len(results[0][0][0]) >= 12
    assert results[0] == results[1]


REGISTER_BY_HAND = """
import sys
import rl_zoo3.exp_manager, rl_zoo3.train
from sb3_ppo_variants import zoo
assert "ppo_klpen" not in rl_zoo3.ALGOS
sys.argv = ["train", "--algo", "ppo_klpen"]
try:
    rl_zoo3.train.train()
except SystemExit as exit:
    print("exit", exit.code)
zoo.register()
assert rl_zoo3.ALGOS["ppo_klpen"].__name__ == "PPOKLPen"
# Also in a script that was imported before
assert rl_zoo3.train.ExperimentManager is rl_zoo3.exp_manager.ExperimentManager
assert len(rl_zoo3.train.ExperimentManager.__mro__) == 3
"""


def test_opt_out_and_register_by_hand(tmp_path: Path) -> None:
    result = python("-c", REGISTER_BY_HAND, cwd=tmp_path, env={OPT_OUT: "1"})
    assert result.stdout.splitlines()[-1] == "exit 2"
    assert "invalid choice: 'ppo_klpen'" in result.stderr


def test_algorithms_train_without_the_zoo(tmp_path: Path) -> None:
    code = "import sys; sys.modules['rl_zoo3'] = None; from sb3_ppo_variants import PPOKLPen; "
    code += "PPOKLPen('MlpPolicy', 'CartPole-v1', n_steps=64).learn(64)"
    python("-c", code, cwd=tmp_path)


def write_package(root: Path, name: str, **modules: str) -> None:
    (root / name).mkdir()
    (root / name / "__init__.py").touch()
    for module, code in modules.items():
        (root / name / f"{module}.py").write_text(code + "\n")


class TestHook:
    """With small packages in place of the Zoo and of this one."""

    @pytest.fixture
    def packages(self, tmp_path: Path) -> Path:
        write_package(
            tmp_path,
            "rl_zoo3",
            utils="STATE = 'executed'",
            hyperparams_opt="",
            exp_manager="import rl_zoo3.hyperparams_opt",
            train="",
        )
        code = "import sys\ndef register_module(name): print('registered', name, vars(sys.modules[name]).get('STATE'))"
        write_package(tmp_path, "sb3_ppo_variants", zoo=code)
        return tmp_path

    def test_registers_after_each_module_and_leaves(self, packages: Path) -> None:
        code = "import sys; import rl_zoo3.train, rl_zoo3.utils, rl_zoo3.exp_manager, rl_zoo3.utils; "
        code += "print([type(finder).__name__ for finder in sys.meta_path].count('ZooFinder'))"
        output = python("-c", code, cwd=packages).stdout.splitlines()
        assert output == [
            "registered rl_zoo3.utils executed",
            "registered rl_zoo3.hyperparams_opt None",
            "registered rl_zoo3.exp_manager None",
            "0",
        ]

    def test_stays_while_there_is_work(self, packages: Path) -> None:
        code = "import sys; import rl_zoo3.utils; print([type(f).__name__ for f in sys.meta_path].count('ZooFinder'))"
        assert python("-c", code, cwd=packages).stdout.splitlines()[-1] == "1"

    def test_spec_and_loader_are_as_without_it(self, packages: Path) -> None:
        code = "import rl_zoo3.utils as m; "
        code += "print(m.__spec__, type(m.__loader__), vars(m.__loader__), m.__file__, m.__cached__ == m.__spec__.cached)"
        with_hook = python("-c", code, cwd=packages).stdout.splitlines()[-1]
        without = python("-c", code, cwd=packages, env={OPT_OUT: "1"}).stdout.splitlines()[-1]
        # The loader's address differs from run to run
        assert re.sub("0x[0-9a-f]+", "", with_hook) == re.sub("0x[0-9a-f]+", "", without)

    def test_looking_without_importing_does_not_register(self, packages: Path) -> None:
        code = "import importlib.util; importlib.util.find_spec('rl_zoo3.utils'); print('looked'); import rl_zoo3.utils"
        assert python("-c", code, cwd=packages).stdout.splitlines() == ["looked", "registered rl_zoo3.utils executed"]

    def test_lives_with_a_finder_that_delegates_too(self, packages: Path) -> None:
        code = """
import importlib.util, sys
class Delegating:
    busy = False
    def find_spec(self, name, path=None, target=None):
        if self.busy or name != "rl_zoo3.utils": return None
        self.busy = True
        try: return importlib.util.find_spec(name)
        finally: self.busy = False
sys.meta_path.insert(int(sys.argv[1]), Delegating())
import rl_zoo3.utils
"""
        for position in ("0", "1"):
            output = python("-c", code, position, cwd=packages).stdout.splitlines()
            assert output == ["registered rl_zoo3.utils executed"]

    def test_a_failing_registration_is_a_warning(self, packages: Path) -> None:
        (packages / "sb3_ppo_variants" / "zoo.py").write_text("raise RuntimeError('broken')\n")
        result = python("-c", "import rl_zoo3.utils, rl_zoo3.exp_manager; print(rl_zoo3.utils.STATE)", cwd=packages)
        assert result.stdout == "executed\n"
        assert result.stderr.count("UserWarning") == 1
        assert "not available in the RL Zoo: RuntimeError: broken" in result.stderr

    def test_a_module_that_fails_to_import_fails_as_without_it(self, packages: Path) -> None:
        (packages / "rl_zoo3" / "utils.py").write_text("raise ImportError('theirs')\n")
        result = python("-c", "import rl_zoo3.utils", cwd=packages, check=False)
        assert result.stderr.splitlines()[-1] == "ImportError: theirs"
        assert "registered" not in result.stdout

    @pytest.mark.parametrize(("value", "on"), [("1", False), ("yes", False), ("", True), ("0", True)])
    def test_opt_out(self, packages: Path, value: str, on: bool) -> None:
        result = python("-c", "import rl_zoo3.utils", cwd=packages, env={OPT_OUT: value})
        assert ("registered" in result.stdout) == on

    def test_start_up_is_cheap(self, tmp_path: Path) -> None:
        spec = importlib.util.find_spec(HOOK)
        assert spec is not None
        assert spec.origin is not None
        code = f"""
import os, sys, time
# Not turned off
os.environ.pop({OPT_OUT!r}, None)
before = set(sys.modules)
source = compile(open({spec.origin!r}).read(), "hook", "exec")
start = time.perf_counter()
exec(source, {{"__name__": "hook"}})
print(time.perf_counter() - start, *sorted(set(sys.modules) - before))
"""
        runs = [python("-c", code, cwd=tmp_path, env={OPT_OUT: "1"}).stdout.split() for _ in range(5)]
        assert min(float(seconds) for seconds, *_ in runs) < 5e-4
        # Nothing is imported that a bare interpreter has not
        assert all(not imported for _, *imported in runs)
