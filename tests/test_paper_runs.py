"""`python -m benchmarks.paper`: runs are made, kept, made again and compared."""

import csv
import os
import shlex
import shutil
import signal
import subprocess
import sys

import joblib
import numpy as np
import pytest
from joblib.externals.loky.process_executor import TerminatedWorkerError

from benchmarks.paper import experiments, figures, runner, training, verification
from benchmarks.paper.__main__ import main, parser, selected
from benchmarks.paper.experiments import SETTINGS, Run
from benchmarks.paper.results import DEFAULT, Results
from benchmarks.paper.scores import Scores, freeze, read_constants


@pytest.fixture(scope="module")
def call():
    """Calls ``python -m benchmarks.paper`` in this process, in which the runs are made, too."""

    def call(*arguments):
        with pytest.MonkeyPatch.context() as patch, joblib.parallel_config(backend="threading"):
            patch.setattr(sys, "argv", ["paper", *map(str, arguments)])
            return main()

    return call


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


def test_missing_damaged_and_renamed_runs_are_named(tmp_path, capsys, call):
    (tmp_path / "curves").mkdir()
    for path in (DEFAULT / "curves").glob("*.npz"):
        if path.stem != "paper-clip_0.2-Reacher-v4-2":
            (tmp_path / "curves" / path.name).symlink_to(path)
    assert call("status", "--results", tmp_path, "--settings", "clip_0.2", "--stages", "table1") == 1
    assert "missing: Reacher-v4 seed 2\n" in capsys.readouterr().out
    assert call("tables", "--results", tmp_path, "table_1") == 2
    # Of the 294, and the 21 with clipping in log space
    assert "1 of 315 runs are missing: paper-clip_0.2-Reacher-v4-2" in capsys.readouterr().err
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
