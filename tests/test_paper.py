"""The reproduction of section 6.1: its protocol, its runner, its results and their tables."""

import csv
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import joblib
import numpy as np
import paper_support
import pytest
import torch as th
from joblib.externals.loky.process_executor import TerminatedWorkerError
from paper_support import Inspect, statistics_of_ppo1
from stable_baselines3.common.vec_env import VecNormalize

from benchmarks.paper import cells, documents, experiments, figure3_report, figures, runner, tables, training, verification
from benchmarks.paper.__main__ import main, parser, selected
from benchmarks.paper.documents import FIGURES
from benchmarks.paper.experiments import SEEDS, SETTINGS, STAGES, TASKS, Run
from benchmarks.paper.results import DEFAULT, Results
from benchmarks.paper.scores import CONSTANTS, Scores, Study, freeze, paper_scores, read_constants
from sb3_ppo_variants import NonFiniteUpdateError, PPOFixedKL
from sb3_ppo_variants.objectives import Terms, policy_gradient


@pytest.fixture(scope="module")
def call():
    """Calls ``python -m benchmarks.paper`` in this process, in which the runs are made, too."""

    def call(*arguments):
        with pytest.MonkeyPatch.context() as patch, joblib.parallel_config(backend="threading"):
            patch.setattr(sys, "argv", ["paper", *map(str, arguments)])
            return main()

    return call


def test_the_plan_is_the_papers():
    trained = [run for run in STAGES["table1"] if run.setting in SETTINGS]
    # 231 runs, and the twelfth setting
    assert len(trained) == 12 * 7 * 3
    assert list(paper_scores()) == list(SETTINGS)[:11]
    runs = [run for stage in STAGES.values() for run in stage]
    assert len(set(runs)) == len(runs)
    assert all(len(STAGES[f"seeds_{setting}"]) == 7 * 7 for setting in paper_scores())
    assert [len(STAGES[name]) for name in ("log_clip", "details_clipped_values")] == [21, 42]
    # Equation (2)
    assert experiments.PPOPolicyGradient.objective is policy_gradient


def test_clipping_in_log_space():
    # Ratios of e^0.5, e^-0.5 and e^0.1; from e^-0.25 = 0.7788 to e^0.25 = 1.2840, clipping changes the first two
    terms = Terms(th.tensor([0.5, -0.5, 0.1]), th.zeros(3), th.tensor([2.0, -1.0, 3.0]), kl=lambda: th.zeros(3))
    found = experiments.PPOLogClip.objective(terms, {"clip_range": 0.25})
    # The smaller of 3.2974 and 2.5681, of -0.6065 and -0.7788, and 3 * 1.1052
    np.testing.assert_allclose(found, [2.5681, -0.7788, 3.3155], atol=1e-4)
    # Whichever way the ratio goes, only the pessimistic side is clipped: 1.6487 * -2 and 0.6065 * 1
    terms = Terms(th.tensor([0.5, -0.5]), th.zeros(2), th.tensor([-2.0, 1.0]), kl=lambda: th.zeros(2))
    np.testing.assert_allclose(experiments.PPOLogClip.objective(terms, {"clip_range": 0.25}), [-3.2974, 0.6065], atol=1e-4)


def test_values_are_clipped_as_at_the_release_of_ppo1():
    model = make_model("none", "Reacher-v4", variant="clipped_values")
    assert model.coefficients() == {
        "vf_coef": 0.5,
        "ent_coef": 0.0,
        "clip_range_vf": 0.2,
        "kl_coef": 0.0,
        "pessimistic_vf": 1.0,
    }
    inspect = Inspect()
    model.learn(2048, callback=[training.ObservationFilter(model.env), inspect])
    # The old values are those of the old parameters and the new statistics, as log probabilities are
    (rollout,) = inspect.rollouts
    np.testing.assert_allclose(rollout.values, rollout.own_values, rtol=1e-5, atol=1e-6)


def test_hyperparameters_are_those_of_table_3():
    run = Run("paper", "adaptive_kl_0.03", "Hopper-v4", 0)
    assert experiments.hyperparameters(run) == {
        "n_steps": 2048,
        "learning_rate": 3e-4,
        "n_epochs": 10,
        "batch_size": 64,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "ent_coef": 0.0,
        "vf_coef": 1.0,
        "max_grad_norm": None,
        "normalize_advantage": "batch",
        "policy_kwargs": {"log_std_init": 0.0, "optimizer_kwargs": {"eps": 1e-5}},
        "kl_target": 0.03,
        "init_kl_coef": 1.0,
    }
    sb3 = experiments.hyperparameters(Run("sb3", "none", "Hopper-v4", 0))
    assert (sb3["max_grad_norm"], sb3["normalize_advantage"], sb3["kl_coef"]) == (0.5, True, 0.0)


def make_model(*args, **kwargs):
    """Of the ten epochs of the study one is enough here."""
    model = paper_support.make_model(*args, compile=False, **kwargs)
    model.n_epochs = 1
    return model


def test_observation_filter_is_that_of_ppo1():
    model, inspect = make_model("clip_0.2", "Reacher-v4"), Inspect()
    model.learn(4096, callback=[training.ObservationFilter(model.env), inspect])
    for end, rollout in zip((2048, 4096), inspect.rollouts, strict=True):
        mean, std = statistics_of_ppo1(inspect.raw[:end])
        expected = np.clip((np.array(inspect.raw[end - 2048 : end]) - mean) / std, -5, 5)
        np.testing.assert_allclose(rollout.observations, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(rollout.log_probs, rollout.own_log_probs, rtol=1e-6)
    # Reacher has an observation that is always 0, whose deviation is held at 0.1
    assert model.env.obs_rms.var.min() == 1e-2


# By variant
CHANGES = {
    "paper": {},
    "sb3": {"bounds": True, "advantages": True, "max_grad_norm": 0.5, "vf_coef": 0.5},
    "bounded_actions": {"bounds": True},
    "minibatch_advantages": {"advantages": True},
    "clipped_gradient": {"max_grad_norm": 0.5, "vf_coef": 0.5},
    "normalized_rewards": {"rewards": (10.0, 0.99)},
    "raw_observations": {"observations": False},
    "raw_advantages": {"advantages": False},
    "raw": {"observations": False, "advantages": False},
    "annealed": {"halfway": 1.5e-4},
    "small_epsilon": {"eps": 1e-8},
    "clipped_values": {"clip_range_vf": 0.2, "vf_coef": 0.5},
}


@pytest.mark.parametrize("variant", experiments.VARIANTS)
def test_variants_change_what_they_say(variant):
    model = make_model("none", "HalfCheetah-v4", variant=variant)
    wrappers, env = [], model.env
    while isinstance(env, VecNormalize):
        wrappers.append(env)
        env = env.venv
    found = {
        "observations": any(wrapper.norm_obs for wrapper in wrappers),
        "rewards": next(((w.clip_reward, w.gamma) for w in wrappers if w.norm_reward), None),
        "bounds": bool((env.action_space.high == 1).all()),
        "halfway": model.lr_schedule(0.5),
        "eps": model.policy.optimizer.param_groups[0]["eps"],
        "advantages": model.normalize_advantage,
        "max_grad_norm": model.max_grad_norm,
        "vf_coef": model.vf_coef,
        "clip_range_vf": model.clip_range_vf and model.clip_range_vf(1),
    }
    # As in ppo1
    paper = {"observations": True, "rewards": None, "bounds": False, "halfway": 3e-4, "eps": 1e-5, "advantages": "batch"}
    assert found == paper | {"max_grad_norm": None, "vf_coef": 1.0, "clip_range_vf": None} | CHANGES[variant]


def test_episodes_end_for_good_at_the_time_limit():
    env = training.make_env(Run("paper", "clip_0.2", "Reacher-v4", 0))
    env.reset(seed=0)
    ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(50)]
    assert ends == [(False, False)] * 49 + [(True, False)]


def test_initial_policy_is_that_of_ppo1():
    model = make_model("none", "Hopper-v4", seed=3)
    for name, parameter in model.policy.named_parameters():
        if name == "log_std" or name.endswith("bias"):
            assert not parameter.any()
        else:
            norm = 0.01 if name.startswith("action_net") else 1.0
            np.testing.assert_allclose(parameter.detach().norm(dim=1), norm, rtol=1e-5)
    assert model.policy.mlp_extractor.policy_net[0].weight.shape == (64, 11)


def test_a_run_that_diverges_is_a_result(monkeypatch):
    def learn(self, timesteps, callback):
        self.num_timesteps = 300
        callback[1].returns, callback[1].lengths = [1.0, 3.0], [100, 150]
        raise NonFiniteUpdateError("policy")

    monkeypatch.setattr(PPOFixedKL, "learn", learn)
    result = training.train(Run("paper", "none", "Reacher-v4", 0), 2048, "")
    assert (result.row["diverged"], result.row["steps"], result.row["score"]) == (True, 300, 2.0)


SELECTION = ["--envs", "InvertedPendulum-v4", "--stages", "table1", "--timesteps", "2048", "--jobs", "1", "--seeds"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory, call):
    """The results of tiny runs, made in two goes."""
    directory = tmp_path_factory.mktemp("paper")
    settings = ["--results", directory, "--settings", "uniform", "untrained", "clip_0.2", "adaptive_kl_0.01"]
    assert call("run", *settings, *SELECTION, "0") == 0
    finished = {path: path.stat().st_mtime_ns for path in directory.glob("curves/*.npz")}
    assert len(finished) == 4
    assert call("run", *settings[:4], *SELECTION, "0", "1") == 0
    # None of the finished ones was made again
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    return directory


def test_each_run_has_one_row(directory):
    with (directory / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({(row["setting"], row["env"], row["seed"]) for row in rows}) == 5
    for row in rows:
        result = Results(directory).load(Run(row["variant"], row["setting"], row["env"], int(row["seed"])))
        assert {name: str(value) for name, value in result.row.items()} == row
        assert len(result.curves["returns"]) == int(row["episodes"])
        assert float(row["score"]) == pytest.approx(result.curves["returns"][-100:].mean(), abs=1e-3)
        if row["setting"] in SETTINGS:
            assert int(row["steps"]) == 2048
            assert len(result.curves["kl"]) == len(result.curves["kl_coef"]) == 1
    assert Results(directory).load(Run("paper", "adaptive_kl_0.01", "InvertedPendulum-v4", 0)).curves["kl_coef"][0] == 1


def test_commands_make_runs_again(directory, tmp_path, capsys, call):
    assert call("commands", "--results", directory, "--settings", "clip_0.2", "--seeds", "0") == 0
    # Without what checks out the commit and sets the environment
    printed = capsys.readouterr().out.strip().split(" && ")[-1]
    environment, command = printed.split("python -m benchmarks.paper ")
    assert environment.startswith("env -u ")
    assert call(*shlex.split(command, comments=True)[:-1], tmp_path, "--jobs", "1") == 0
    run = Run("paper", "clip_0.2", "InvertedPendulum-v4", 0)
    assert verification.differences(Results(directory).load(run), Results(tmp_path).load(run)) == []


def test_commands_unset_what_a_run_did_not_have(monkeypatch):
    monkeypatch.setattr(experiments, "VARIABLES", ("A", "B", "C"))
    run, row = Run("paper", "none", "Reacher-v4", 0), {"commit": "unknown", "timesteps": 1_000_000}
    tail = "--variants paper --settings none --envs Reacher-v4 --seeds 0 --results ../again"
    assert experiments.command(run, row) == f"env -u A -u B -u C python -m benchmarks.paper run {tail}"
    command = experiments.command(run, {**row, "variables": "A=Zen; C=g++ -O"})
    assert command == f"env -u B A=Zen C='g++ -O' python -m benchmarks.paper run {tail}"


def test_commands_of_a_pilot_find_its_runs():
    run = experiments.PILOTS["figure3_later_pilot"][0]
    command = experiments.command(run, {"commit": "unknown", "timesteps": 200_000})
    arguments = shlex.split(command.split("python -m benchmarks.paper ")[1])
    assert selected(parser().parse_args(arguments)) == [run]
    assert arguments[arguments.index("--timesteps") + 1] == "200000"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository of what is checked out, and the commit of it."""
    root = tmp_path_factory.mktemp("repository")
    for name in ("benchmarks", "hyperparams", "sb3_ppo_variants"):
        shutil.copytree(verification.ROOT / name, root / name, ignore=shutil.ignore_patterns("results", "__pycache__"))

    def git(*arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=b", *arguments]
        return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    git("add", "--all")
    git("commit", "--message=1")
    return root, git("rev-parse", "--short=12", "HEAD")


@pytest.fixture
def changed(directory, repository, tmp_path, monkeypatch):
    """Two of the tiny runs in another directory: one as an older commit left it, and one with another last bit."""
    root, commit = repository
    monkeypatch.setattr(verification, "ROOT", root)
    results = Results(tmp_path / "changed")
    results.curves.mkdir(parents=True)
    for setting in ("clip_0.2", "adaptive_kl_0.01"):
        run = Run("paper", setting, "InvertedPendulum-v4", 0)
        result = Results(directory).load(run)
        result.row["commit"] = commit
        if setting == "clip_0.2":
            # As older rows
            for name in ("processor", "blas", "cpu_capability", "variables"):
                del result.row[name]
            result.row.update(versions=f"torch 1.0; {result.row['versions']}")
        else:
            result.curves["returns"][-1] = np.nextafter(result.curves["returns"][-1], np.float32(np.inf))
        results.save(run, result)
    return results.directory


def test_verify_tells_which_runs_are_exact(changed, capsys, call):
    assert call("verify", "2", "--results", changed, "--jobs", "2") == 1
    both = capsys.readouterr().out
    # By the same commit
    older = "    versions: torch 1.0, now none\n    not recorded: processor, blas, cpu_capability, variables\n"
    assert f"paper-clip_0.2-InvertedPendulum-v4-0: exact\n{older}" in both
    n_episodes = len(Results(changed).load(Run("paper", "adaptive_kl_0.01", "InvertedPendulum-v4", 0)).curves["returns"])
    change = f"returns: the same up to number {n_episodes - 1} of {n_episodes}"
    # Nothing else is, not even in the environment
    assert f"paper-adaptive_kl_0.01-InvertedPendulum-v4-0: NOT EXACT\n    {change}\n" in both
    assert both.count("not recorded") == 1
    assert both.endswith("1 of 2 are exact\n")


def test_verify_takes_the_code_of_the_commit(repository, changed, capsys, call):
    # What is checked out now cannot make runs
    path = repository[0] / "benchmarks" / "paper" / "training.py"
    text = path.read_text(encoding="utf-8")
    path.write_text("raise SystemExit(3)\n", encoding="utf-8")
    try:
        assert call("verify", "1", "--results", changed, "--settings", "clip_0.2", "--jobs", "1") == 0
    finally:
        path.write_text(text, encoding="utf-8")
    assert capsys.readouterr().out.endswith("1 of 1 are exact\n")


@pytest.mark.parametrize(
    ("commit", "message"),
    [("0123456789ab", "0123456789ab"), ("unknown", "its commit is unknown"), ("0123456789ab+", "its commit is 0123456789ab+")],
)
def test_verify_says_what_it_cannot_make(commit, message, changed, capsys, call):
    results, run = Results(changed), Run("paper", "clip_0.2", "InvertedPendulum-v4", 0)
    result = results.load(run)
    result.row["commit"] = commit
    results.save(run, result)
    assert call("verify", "1", "--results", changed, "--settings", "clip_0.2", "--jobs", "1") != 0
    found = capsys.readouterr()
    assert message in found.err
    assert "1 of 1" not in found.out


def test_verify_draws_at_random(changed, capsys, call):
    runs = [Run("paper", "none", "Reacher-v4", seed) for seed in range(10)]
    assert verification.draw(runs, 3, seed=1) == verification.draw(runs, 3, seed=1) != verification.draw(runs, 3, seed=2)
    assert sorted(verification.draw(runs, 10, seed=None)) == runs
    assert call("verify", "3", "--results", changed) == 2
    assert "number must be from 1 to 2, as there are so many runs, but it is 3" in capsys.readouterr().err


def test_one_program_makes_runs_of_one_length(tmp_path):
    results = Results(tmp_path)
    with results.lock(), pytest.raises(ValueError, match="Another program is making runs in"), Results(tmp_path).lock():
        pass
    (tmp_path / "curves" / "of_a_killed_run.unfinished").touch()
    with results.lock():
        assert list(tmp_path.rglob("*.unfinished")) == []
    run = Run("paper", "none", "Reacher-v4", 0)
    results.save(run, training.Result({**vars(run), "timesteps": 10}, {}))
    results.check_timesteps(10)
    with pytest.raises(ValueError, match=r"timesteps is 11, but .* has runs of 10"):
        results.check_timesteps(11)


def test_constants_are_frozen_once(directory, tmp_path):
    results, path = Results(directory), tmp_path / "constants.csv"
    runs = list(results.rows())
    freeze(results, path, runs)
    with pytest.raises(FileExistsError):
        freeze(results, path, runs)
    scores = {(run.setting, run.seed): row["score"] for run, row in results.rows().items()}
    of_env = read_constants(path)["InvertedPendulum-v4"]
    assert of_env["best_run"] == max(scores["clip_0.2", 0], scores["adaptive_kl_0.01", 0]) == scores[of_env["best_run_of"], 0]
    assert of_env["uniform"] == pytest.approx((scores["uniform", 0] + scores["uniform", 1]) / 2, abs=1e-4)


def test_a_run_that_fails_is_named_and_the_others_are_made(tmp_path, monkeypatch, capsys):
    def train(run, timesteps, commit):
        if run.seed == 1:
            raise ArithmeticError("it broke")
        return training.Result({**vars(run), "timesteps": timesteps}, {})

    monkeypatch.setattr(runner, "train", train)
    runs = [Run("paper", "uniform", "InvertedPendulum-v4", seed) for seed in range(3)]
    assert runner.run_all(runs, 1, Results(tmp_path), jobs=1) == [runs[1].name]
    assert "ArithmeticError: it broke" in capsys.readouterr().err
    assert set(Results(tmp_path).rows()) == {runs[0], runs[2]}


def test_after_a_process_was_killed_the_same_call_goes_on(tmp_path):
    class Killed(Results):
        def save(self, run, result):
            if run.seed == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            super().save(run, result)

    runs = [Run("paper", "uniform", "InvertedPendulum-v4", seed) for seed in range(3)]
    with pytest.raises(TerminatedWorkerError):
        runner.run_all(runs, 1, Killed(tmp_path), jobs=2)
    # The third begins when one of the others has ended
    assert set(Results(tmp_path).rows()) in ({runs[0]}, {runs[1]}, set(runs[:2]))
    assert runner.run_all(runs, 1, Results(tmp_path), jobs=2) == []


def test_committed_results_are_complete():
    """Each file has its row, and each seed of a task the same first rollout with all settings, to the last bit."""
    results = Results(DEFAULT)
    with results.table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    # Older rows do not say where they were made
    unknown = dict.fromkeys(("processor", "blas", "cpu_capability", "variables"), "")
    expected = [unknown | row for _, row in sorted(results.rows().items())]
    assert rows == [{name: str(value) for name, value in row.items()} for row in expected]
    assert {row["timesteps"] for row in rows} == {"1000000"}
    for env, seed in ((env, seed) for env in TASKS for seed in SEEDS):
        curves = [results.load(Run("paper", setting, env, seed)).curves for setting in list(SETTINGS)[:12]]
        first = {tuple(curve["returns"][curve["lengths"].cumsum() <= 2048].tolist()) for curve in curves}
        assert len(first) == 1, (env, seed)
        assert len(first.pop()) >= 2


def test_tables_in_the_documents_are_those_of_the_committed_results(tmp_path):
    freeze(Results(DEFAULT), tmp_path / "constants.csv", STAGES["table1"])
    assert (tmp_path / "constants.csv").read_text() == CONSTANTS.read_text()
    study = Study(Results(DEFAULT), CONSTANTS)
    for path in documents.DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        assert documents.with_tables(text, study) == text, f"{path}: run `python -m benchmarks.paper tables`"
    names = re.findall(r"<!-- table: (\w+) -->", documents.TABLE_1_PAGE.read_text(encoding="utf-8"))
    assert sorted(names) == sorted(tables.TABLES)
    names = re.findall(r"<!-- table: (\w+) -->", documents.FIGURE_3_PAGE.read_text(encoding="utf-8"))
    assert names == ["figure3", "figure3_by_task", "figure3_distance"]
    names = re.findall(r"<!-- table: (\w+) -->", documents.TABLE_2_PAGE.read_text(encoding="utf-8"))
    tables_2 = ["minatar_wins", "minatar_training", "minatar_training_leads", "minatar_last", "minatar_last_leads"]
    assert names == [*tables_2, "minatar_pilot"]
    of_table_1 = ("table1", "learning_curves", "performance_profile", "kl", "figure1", "figure2")
    drawn_from = {**dict.fromkeys(of_table_1, study.all_seeds), "figure3": figure3_report.scores_of(study)}
    for name, scores in drawn_from.items():
        assert figures.of_runs(scores) in (FIGURES / f"{name}.svg").read_text(encoding="utf-8")


def test_missing_damaged_and_renamed_runs_are_named(tmp_path, capsys, call):
    (tmp_path / "curves").mkdir()
    for path in (DEFAULT / "curves").glob("*.npz"):
        if path.stem != "paper-clip_0.2-Reacher-v4-2":
            (tmp_path / "curves" / path.name).symlink_to(path)
    assert call("status", "--results", tmp_path, "--settings", "clip_0.2", "--stages", "table1") == 1
    assert "missing: Reacher-v4 seed 2\n" in capsys.readouterr().out
    assert call("tables", "--results", tmp_path, "table_1") == 2
    assert "1 of 294 runs are missing: paper-clip_0.2-Reacher-v4-2" in capsys.readouterr().err
    copy = tmp_path / "curves" / "paper-clip_0.2-Reacher-v4-1.npz"
    content = copy.read_bytes()
    copy.unlink()
    copy.write_bytes(content[:100])
    with pytest.raises(ValueError, match=rf"{copy.name} cannot be read"):
        Results(tmp_path).rows()
    copy.unlink()
    copy.with_stem("paper-clip_0.2-Reacher-v4-2").write_bytes(content)
    with pytest.raises(ValueError, match=r"v4-2.npz has the run paper-clip_0.2-Reacher-v4-1: its name"):
        Results(tmp_path).rows()


def test_cells_of_table_1():
    # In each task 79, 80 and 81 of 100; with the policy before training as 0, HalfCheetah has 279, 280 and 281 of 300
    scores = made_up_scores({"clip_0.2": [79, 80, 81], "policy_gradient": [-100, 0, 700]})
    study = SimpleNamespace(table_1=scores, ten_seeds=made_up_scores({"clip_0.2": [79, 80, 81, 84]}))
    # Deviation 0.01: to either side, the interval is 2.145 (t, 14 degrees of freedom) sqrt(7 / 3) 0.01 / 7 = 0.005, and that
    # of the difference from the paper sqrt(2) times as much. With 84, a variance of 14 / 3 and 21 degrees of freedom:
    # 2.080 sqrt(7 * 14 / 3 / 4) / 7 / 100 = 0.0085
    cells = "0.82 | 0.80 (0.80 to 0.80) | -0.02 (-0.03 to -0.01) | 0.81 (0.80 to 0.82)"
    assert tables._table_1(study).splitlines()[2:] == [f"| Clipping, epsilon = 0.2 | {cells} |"]
    assert "21 runs with a median of 0.00 and a mean of 2.00" in tables._policy_gradient(study)
    # 80 of 90
    assert "| 0.82 | 0.80 (0.80 to 0.80) | 0.89 (" in tables._readings(scores)


def test_cells_of_comparisons(monkeypatch):
    means = {"none": 0, "policy_gradient": -10, "clip_0.1": 70, "clip_0.2": 80, "clip_0.3": 60}
    means |= {"adaptive_kl_0.003": 50, "adaptive_kl_0.01": 71, "adaptive_kl_0.03": 62}
    means |= {"fixed_kl_0.3": 40, "fixed_kl_1": 50, "fixed_kl_3": 60, "fixed_kl_10": 50}
    runs = {name: [mean - 1, mean, mean + 1, mean] for name, mean in means.items()}
    three, ten = made_up_scores({name: own[:3] for name, own in runs.items()}), made_up_scores(runs)
    # Four pairs, two kinds, and L^PG by itself, in the order of the table; that of the seeds that are new is of one run a task
    p_values = iter([0.01, 0.04, 0.03, 0.5, 0.04, 0.02, 0.03])
    monkeypatch.setattr(tables, "p_value", lambda one, _: 0.7 if one.shape[1] == 1 else next(p_values))
    rows = [
        line.strip("| ").split(" | ") for line in tables._pairs(SimpleNamespace(table_1=three, ten_seeds=ten)).splitlines()[2:]
    ]
    assert [row[0].split(", minus ")[0] for row in rows[-3:]] == ["Clipping", "Clipping", "No clipping or penalty"]
    # The kinds' means are 70, 61 and 50
    assert [row[3].split(" ")[0] for row in rows] == ["+0.80", "+0.09", "+0.20", "+0.11", "+0.09", "+0.20", "+0.10"]
    # Of the paper's settings with clipping (0.76, 0.82, 0.70) and a penalty, (0.68, 0.74, 0.71) and (0.62, 0.71, 0.72, 0.69)
    assert [row[2] for row in rows] == ["+1.21", "+0.08", "+0.10", "+0.02", "+0.05", "+0.08", "not given"]
    assert [row[5:7] for row in rows] == [["1.00 (1.00 to 1.00)", "7 of 7"]] * 7
    assert [row[7] for row in rows] == ["0.70"] * 4 + [""] * 3
    assert [row[8] for row in rows] == ["0.010", "0.040", "0.030", "0.50", "0.040", "0.020", "0.030"]
    # Holm: 4 * 0.01, 3 * 0.03 and at least that, 0.5; 2 * 0.02 and at least that
    assert [row[9] for row in rows] == ["0.040", "0.090", "0.090", "0.50", "0.040", "0.040", "0.030"]


def test_cells_of_equivalence_and_power():
    scores = made_up_scores({"clip_0.2": [79, 80, 81], "adaptive_kl_0.01": [69, 70, 71], "fixed_kl_3": [71, 72, 73]})
    study = SimpleNamespace(table_1=scores, ten_seeds=scores)
    # 1.761 (t, 14 degrees of freedom, one side) sqrt(2 * 7 / 3) 0.01 / 7 = 0.0054: at most 0.0254
    assert "| Clipping, epsilon = 0.2, minus the paper | 3 | -0.02 (-0.03 to -0.01) | 0.03 |" in tables._equivalences(study)
    scores = made_up_scores({"clip_0.2": [70, 80, 90], "adaptive_kl_0.01": [60, 70, 80], "fixed_kl_3": [61, 71, 81]})
    study = SimpleNamespace(table_1=scores, ten_seeds=scores)
    # The standard error is sqrt(14 * 0.01 / 3) / 7 = 0.0309: 0.08 is 2.59 of it, and 2.05 (t, 28 degrees of freedom) is
    # exceeded with a probability of about Phi(0.54) = 0.71; 0.80 takes 2.05 + 0.84 = 2.89 of it, 0.089
    assert tables._power(study).splitlines()[2].split(" | ")[1:] == ["+0.08", "0.71", "0.71", "0.09", "0.09 |"]


def test_part_of_half_cheetah_is_from_the_policy_before_training_with_the_same_bounds():
    scores = made_up_scores({"clip_0.2": [79, 80, 81]})
    rows = dict(scores.rows)
    for env in TASKS:
        for seed in SEEDS:
            for variant, setting, score in (("sb3", "clip_0.2", 60), ("bounded_actions", "untrained", -50 - seed)):
                rows[Run(variant, setting, env, seed)] = {"score": score, "timesteps": 1, "diverged": False}
    # 80 + 200 of 100 + 200 in one of seven tasks, 0.13; bounded, 60 + 51 of 100 + 51, 0.105
    paper, sb3 = tables._details(Scores(rows, scores.constants)).splitlines()[2:]
    assert paper.endswith("| 79.0, 80.0, 81.0 | 0 | +0.13 |")
    assert sb3.endswith("| 60.0, 60.0, 60.0 | 0 | +0.11 |")


def test_ends_of_intervals_keep_the_sign_of_a_rounded_zero():
    assert cells.interval(0.0396, 0.0442, sign="+") == "+0.04 (-0.00 to 0.08)"
    assert cells.interval(-0.002, 0.001) == "0.00 (-0.00 to -0.00)"


def test_running_scores(monkeypatch):
    monkeypatch.setattr(figures, "LAST_EPISODES", 2)
    run = Run("paper", "none", "Reacher-v4", 0)
    curves = {"lengths": np.array([10, 10, 10]), "returns": np.array([1.0, 2.0, 6.0])}
    results = SimpleNamespace(load=lambda _: SimpleNamespace(curves=curves))
    scores = SimpleNamespace(rows=[run, Run("paper", "clip_0.2", "Reacher-v4", 0)])
    # Of the first episode, of the first two, of the last two
    expected = [[np.nan, 1, 1, 1.5, 1.5, 4, 4]]
    grid = np.array([9, 10, 19, 20, 29, 30, 99])
    np.testing.assert_array_equal(figures.running_scores(results, scores, "none", "Reacher-v4", grid), expected)


def test_runs_that_tie_for_the_best_are_counted():
    scores = made_up_scores({"clip_0.2": [100, 100, 81], "clip_0.3": [100, 2, 3], "none": [0, 0, 0]})
    assert "| 100 (3 runs) | 90.0 (Clipping, epsilon = 0.3) |" in tables._normalization(scores)


def test_how_well_the_adaptive_penalty_meets_its_target():
    curves = {"kl": np.array([0.5, 1, 2, 5]), "kl_coef": np.array([1.0, 2.0, 1e-6, 4.0])}
    settings = {name: setting.kwargs["kl_target"] for name, setting in SETTINGS.items() if name.startswith("adaptive_kl")}
    results = {Run("paper", name, "Hopper-v4", 0): curves | {"kl": curves["kl"] * target} for name, target in settings.items()}
    study = SimpleNamespace(
        table_1=SimpleNamespace(rows=results), results=SimpleNamespace(load=lambda run: SimpleNamespace(curves=results[run]))
    )
    lines = tables._adaptation(study).splitlines()[2:]
    # Of 1 / 2, 1, 2 and 5 times the target one is below, one in the band; 95% are 2 + 0.85 * 3. One beta is at its bound
    cells = "25% | 25% | 50% | 25% | 1.5 | 2.12 | 4.55 | 5 | 1e-06 to 4 | 1 of 4 |"
    assert [line.split(" | ", 1)[1] for line in lines] == [cells] * 3


def made_up_scores(returns):
    """Scores of which 0 is 0, and -200 on HalfCheetah before training; the best run has 100, and the best setting 90."""
    rows = {
        Run("paper", setting, env, seed): {"score": score, "timesteps": 1, "diverged": False}
        for setting in returns
        for env in TASKS
        for seed, score in enumerate(returns[setting])
    }
    constants = {
        env: {
            "uniform": 0,
            "untrained": -200 if env == TASKS[0] else 0,
            "best_run": 100,
            "best_run_of": "clip_0.2",
            "best_setting": 90,
            "best_setting_of": "clip_0.3",
        }
        for env in TASKS
    }
    return Scores(rows, constants)


def test_figure_2_is_that_of_the_paper():
    # theta_old, halfway, theta
    positions, values = figures.interpolate(points=9)
    assert positions[[1, 3, 5]].tolist() == [0, 0.5, 1]
    kl, cpi, _, clip = values.values()
    np.testing.assert_allclose([kl[1], cpi[1], clip[1]], 0, atol=1e-6)
    # Equation (7) is a lower bound of equation (6), and turns down beyond theta
    assert (clip <= cpi + 1e-6).all()
    assert 0 < clip[3] < clip[5]
    assert clip[-1] < clip[5] < cpi[5] < cpi[-1]
    assert 0.001 < kl[5] < 0.1


def test_figures_are_drawn(directory, tmp_path):
    results = Results(tmp_path / "results")
    results.curves.mkdir(parents=True)
    for run in Results(directory).rows():
        result = Results(directory).load(run)
        # Intervals take two seeds
        for seed in (0, 1):
            row = {**result.row, "seed": seed, "score": result.row["score"] + seed}
            results.save(Run(run.variant, run.setting, run.env, seed), training.Result(row, result.curves))
    constants = {"InvertedPendulum-v4": {"uniform": 0.0, "untrained": 0.0, "best_run": 90.0}}
    scores = Scores(results.rows(), constants)
    figures.draw(results, scores, tmp_path / "figures")
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".svg", ".pdf"}
    assert len(list((tmp_path / "figures").iterdir())) == 2 * 6
    drawn_from = figures.of_runs(scores)
    assert drawn_from in (tmp_path / "figures" / "kl.svg").read_text(encoding="utf-8")
    assert figures.of_runs(scores.only(list(scores.rows)[1:])) != drawn_from
