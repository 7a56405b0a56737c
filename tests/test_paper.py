"""The reproduction of section 6.1: its statistics, its protocol, and the whole pipeline on tiny runs."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch as th
import yaml
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.paper import experiments, figures, report, statistics, training
from benchmarks.paper.__main__ import main
from benchmarks.paper.experiments import SETTINGS, STAGES, Run
from benchmarks.paper.results import Results
from sb3_ppo_variants import NonFiniteUpdateError, PPOFixedKL, PPOKLPen

ROOT = Path(__file__).parents[1]


def test_normalize():
    scores = np.array([[0.0, 5.0], [-10.0, 20.0]])
    normalized = statistics.normalize(scores, random=np.array([0.0, -20.0]), best=np.array([10.0, 20.0]))
    np.testing.assert_allclose(normalized, [[0, 0.5], [0.25, 1]])
    with pytest.raises(ValueError, match="best must be greater than random"):
        statistics.normalize(scores, random=np.array([0.0, 20.0]), best=np.array([10.0, 20.0]))


def test_means_gap_and_profile():
    scores = np.array([[0.0, 0.25, 0.5, 0.5], [0.75, 1.0, 1.5, -2.0]])
    assert statistics.mean(scores) == pytest.approx(2.5 / 8)
    # Sorted: -2, 0, 0.25, 0.5, 0.5, 0.75, 1, 1.5; the middle half is 0.25, 0.5, 0.5, 0.75
    assert statistics.interquartile_mean(scores) == pytest.approx(0.5)
    # 1 counts for 1.5: the mean is 2 / 8
    assert statistics.optimality_gap(scores) == pytest.approx(0.75)
    profile = statistics.performance_profile(scores, np.array([-3.0, 0.0, 0.5, 1.5]))
    np.testing.assert_allclose(profile, [1, 6 / 8, 3 / 8, 0])


def test_statistics_keep_leading_dimensions():
    scores = np.random.default_rng(0).normal(size=(5, 7, 3))
    for statistic in (statistics.mean, statistics.interquartile_mean, statistics.optimality_gap):
        np.testing.assert_allclose(statistic(scores), [statistic(one) for one in scores])
    profiles = statistics.performance_profile(scores, np.array([0.0, 1.0]))
    assert profiles.shape == (5, 2)
    improvements = statistics.probability_of_improvement(scores, scores[::-1])
    assert improvements.shape == (5,)
    assert improvements[2] == pytest.approx(0.5)


def test_probability_of_improvement_is_within_tasks():
    # In the first task always better; in the second one of two pairs is a tie, the other is lost
    ours, theirs = np.array([[3.0], [1.0]]), np.array([[1.0, 2.0], [1.0, 2.0]])
    assert statistics.probability_of_improvement(ours, theirs) == pytest.approx((1 + 0.25) / 2)


def test_bootstrap_is_stratified_and_reproducible():
    # All runs of a task are alike, so only a bootstrap that mixes tasks would vary
    scores = np.repeat([[0.0], [1.0], [5.0]], 4, axis=1)
    assert statistics.bootstrap(statistics.mean, [scores], np.random.default_rng(0), 100) == (2.0, 2.0)
    scores = np.random.default_rng(1).normal(size=(4, 250))
    low, high = statistics.bootstrap(statistics.mean, [scores], np.random.default_rng(0), 2000)
    # The standard error of the mean of 1000 is 1 / sqrt(1000)
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(1000), rel=0.1)
    assert (low, high) == statistics.bootstrap(statistics.mean, [scores], np.random.default_rng(0), 2000)
    assert (low, high) != statistics.bootstrap(statistics.mean, [scores], np.random.default_rng(1), 2000)


def test_the_plan_is_the_papers():
    table1 = STAGES["table1"]
    assert len(SETTINGS) == 12
    assert list(report.paper_scores()) == list(SETTINGS)[:-1]
    # 231 runs, and the twelfth setting and the two references
    trained = [run for run in table1 if run.setting in SETTINGS]
    assert len([run for run in trained if run.setting != "policy_gradient"]) == 231
    assert len(trained) == 12 * 7 * 3
    runs = [run.name for stage in STAGES.values() for run in stage]
    assert len(set(runs)) == len(runs)
    assert all(len(STAGES[f"seeds_{setting}"]) == 7 * 7 for setting in experiments.MORE_SEEDS_SETTINGS)


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
        "target_kl": 0.03,
        "init_kl_coef": 1.0,
    }
    sb3 = experiments.hyperparameters(Run("sb3", "none", "Hopper-v4", 0))
    assert (sb3["max_grad_norm"], sb3["normalize_advantage"], sb3["kl_coef"]) == (0.5, True, 0.0)


@pytest.mark.parametrize("name", ["table3_mujoco", "table4_roboschool", "table5_atari"])
def test_files_for_the_zoo_are_yaml(name):
    entries = yaml.safe_load((ROOT / "hyperparams" / "paper" / f"{name}.yml").read_text(encoding="utf-8"))
    for entry in entries.values():
        assert {"n_timesteps", "policy", "n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda"} <= entry.keys()


def test_policy_gradient_is_equation_2():
    model = experiments.PolicyGradient("MlpPolicy", "Pendulum-v1")
    terms = type("Terms", (), {"log_prob": th.tensor([-1.0, -2.0]), "advantages": th.tensor([3.0, -0.5])})
    assert model.surrogate(terms, {}).tolist() == [-3.0, 1.0]


class Inspect(BaseCallback):
    """Keeps raw and normalised observations, and what an update is going to learn from."""

    def __init__(self):
        super().__init__()
        self.raw = []
        self.rollouts = []

    def _on_rollout_start(self):
        self.raw.append(self.training_env.get_original_obs())

    def _on_step(self):
        self.raw.append(self.training_env.get_original_obs())
        return True

    def _on_rollout_end(self):
        buffer = self.locals["rollout_buffer"]
        with th.no_grad():
            obs, actions = (th.as_tensor(array[:, 0]).float() for array in (buffer.observations, buffer.actions))
            _, log_prob, _ = self.model.policy.evaluate_actions(obs, actions)
        self.rollouts.append((buffer.observations[:, 0].copy(), buffer.log_probs[:, 0].copy(), log_prob.numpy()))


def test_observation_filter_is_that_of_ppo1():
    run = Run("paper", "clip_0.2", "Reacher-v4", 0)
    model = training.make_model(run, make_vec_env(lambda: training.make_env(run), seed=0), compile=False)
    inspect = Inspect()
    model.learn(4096, callback=[training.ObservationFilter(model.env), inspect])
    # Each rollout notes its first observation, which the one before noted as its last
    raw = np.concatenate(inspect.raw).astype(np.float64)
    first, second = raw[:2048], raw[2049 : 2049 + 2048]
    for seen, (normalized, log_probs, recomputed) in zip(([first], [first, second]), inspect.rollouts, strict=True):
        data = np.concatenate(seen)
        count = len(data) + 1e-2
        mean = data.sum(axis=0) / count
        std = np.sqrt(np.maximum((np.square(data).sum(axis=0) + 1e-2) / count - mean**2, 1e-2))
        np.testing.assert_allclose(normalized, np.clip((seen[-1] - mean) / std, -5, 5), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(log_probs, recomputed, rtol=1e-6)
    # Reacher has an observation that is always 0, whose deviation is held at 0.1
    assert model.env.obs_rms.var.min() == 1e-2


def test_kl_is_that_of_the_filtered_observations():
    """A policy that does not change has none, whatever becomes of its observations between rollout and update."""
    run = Run("paper", "adaptive_kl_0.01", "Reacher-v4", 0)
    model = training.make_model(run, make_vec_env(lambda: training.make_env(run), seed=0), compile=False)
    model.lr_schedule = lambda progress: 0.0
    with th.no_grad():
        model.policy.action_net.weight.mul_(100)
    model.learn(2048, callback=[training.ObservationFilter(model.env)])
    assert model.logger.name_to_value["train/kl"] == pytest.approx(0, abs=1e-9)


def test_initial_policy_is_that_of_ppo1():
    run = Run("paper", "none", "Hopper-v4", 3)
    model = training.make_model(run, make_vec_env(lambda: training.make_env(run), seed=3))
    for name, parameter in model.policy.named_parameters():
        if name == "log_std" or name.endswith("bias"):
            assert not parameter.any()
        else:
            norm = 0.01 if name.startswith("action_net") else 1.0
            np.testing.assert_allclose(parameter.detach().norm(dim=1), norm, rtol=1e-5)
    assert model.policy.mlp_extractor.policy_net[0].weight.shape == (64, 11)


SETTINGS_USED = ["clip_0.2", "adaptive_kl_0.01"]
ENVS_USED = ["InvertedPendulum-v4", "Reacher-v4"]
SELECTION = ["--settings", *SETTINGS_USED, "uniform", "untrained", "--envs", *ENVS_USED, "--seeds", "0", "1"]
N_RUNS = 16


def call(*arguments, **kwargs):
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.paper", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The results of tiny runs, killed once and taken up again."""
    directory = tmp_path_factory.mktemp("paper")
    arguments = ("run", *SELECTION, "--stages", "table1", "--results", directory, "--timesteps", "4096", "--jobs", "2")
    killed = call(*arguments, start_new_session=True)
    while len(list(directory.glob("curves/*.npz"))) < 3:
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    finished = {path: path.stat().st_mtime_ns for path in directory.glob("curves/*.npz")}
    assert 3 <= len(finished) < N_RUNS
    resumed = call(*arguments)
    output, _ = resumed.communicate()
    assert resumed.returncode == 0, output
    # None of the finished ones was made again
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    return directory


def test_each_run_has_one_row(directory):
    with (directory / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == N_RUNS
    assert len({(row["setting"], row["env"], row["seed"]) for row in rows}) == N_RUNS
    for row in rows:
        result = Results(directory).load(Run(row["variant"], row["setting"], row["env"], int(row["seed"])))
        assert len(result.curves["returns"]) == int(row["episodes"])
        assert float(row["score"]) == pytest.approx(result.curves["returns"][-100:].mean(), abs=1e-3)
        if row["setting"] in SETTINGS:
            assert int(row["steps"]) == 4096
            assert result.curves["lengths"].sum() <= 4096
            assert len(result.curves["kl"]) == len(result.curves["kl_coef"]) == 2
    adaptive = Results(directory).load(Run("paper", "adaptive_kl_0.01", "Reacher-v4", 0)).curves
    assert adaptive["kl_coef"][0] == 1


def test_a_run_can_be_made_again(directory, tmp_path):
    selection = ["--settings", "clip_0.2", "--envs", "Reacher-v4", "--seeds", "1", "--variants", "paper"]
    again = call("run", *selection, "--results", tmp_path, "--timesteps", "4096")
    output, _ = again.communicate()
    assert again.returncode == 0, output
    run = Run("paper", "clip_0.2", "Reacher-v4", 1)
    expected, actual = Results(directory).load(run), Results(tmp_path).load(run)
    np.testing.assert_array_equal(actual.curves["returns"], expected.curves["returns"])
    assert actual.row["score"] == expected.row["score"]


def test_report_and_figures(directory, tmp_path, capsys, monkeypatch):
    def run(command, *arguments):
        arguments = (command, *SELECTION, "--stages", "table1", "--results", directory, *arguments)
        monkeypatch.setattr(sys, "argv", ["paper", *map(str, arguments)])
        return main()

    constants, output, drawn = tmp_path / "constants.csv", tmp_path / "paper.md", tmp_path / "figures"
    assert run("freeze", "--constants", constants) == 0
    # Once and for all
    assert run("freeze", "--constants", constants) == 1
    assert "constants.csv" in capsys.readouterr().err
    frozen = report.read_constants(constants, ENVS_USED)
    rows = Results(directory).read_table()

    def scores_of(setting):
        return np.array([[float(rows[Run("paper", setting, env, seed)]["score"]) for seed in (0, 1)] for env in ENVS_USED])

    best = np.maximum(scores_of("clip_0.2"), scores_of("adaptive_kl_0.01")).max(axis=1)
    np.testing.assert_allclose(frozen["best_run"], best, atol=1e-4)
    np.testing.assert_allclose(frozen["untrained"], scores_of("untrained").mean(axis=1), atol=1e-4)

    # Runs so short are not better than a random policy
    constants.write_text(
        "env,uniform,untrained,best_run,best_setting\nInvertedPendulum-v4,1,2,50,40\nReacher-v4,-200,-190,-4,-5\n"
    )
    assert run("table1", "--constants", constants, "--output", output) == 0
    text = output.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| Clipping, epsilon = 0.2 | 0.82 |")]
    expected = (scores_of("clip_0.2") - [[1], [-200]]) / [[49], [196]]
    assert f"**{expected.mean():.2f}**" in lines[0]
    # The same report from the same results
    assert run("table1", "--constants", constants, "--output", output) == 0
    assert output.read_text(encoding="utf-8") == text

    assert run("figures", "--constants", constants, "--output", drawn) == 0
    names = {"figure1", "figure2", "learning_curves", "performance_profile", "kl"}
    expected_files = {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    assert {path.name for path in drawn.iterdir()} == expected_files


def test_running_geometric_mean():
    curves = [np.array([1.0, 4.0, 2.0]), np.array([4.0])]
    # 2, 4, 2 over the curves
    np.testing.assert_allclose(figures.running_geometric_mean(curves, 2), [8**0.5, 8**0.5])
    np.testing.assert_allclose(figures.running_geometric_mean(curves, 20), [16 ** (1 / 3)])


def test_missing_runs_are_an_error(directory, tmp_path, capsys, monkeypatch):
    arguments = [
        "--results",
        str(directory),
        "--settings",
        "clip_0.2",
        "--envs",
        "Reacher-v4",
        "--seeds",
        "0",
        "2",
        "--stages",
        "table1",
    ]
    monkeypatch.setattr(sys, "argv", ["paper", "table1", *arguments, "--output", str(tmp_path / "paper.md")])
    assert main() == 1
    assert "1 of 2 runs are missing: paper-clip_0.2-Reacher-v4-2" in capsys.readouterr().err
    assert not (tmp_path / "paper.md").exists()
    monkeypatch.setattr(sys, "argv", ["paper", "status", *arguments])
    assert main() == 1
    assert "Reacher-v4 seed 2" in capsys.readouterr().out


def test_a_failed_run_is_tried_again_and_named(tmp_path):
    script = """
import sys
from benchmarks.paper import runner
from benchmarks.paper.experiments import Run
from benchmarks.paper.results import Results
from pathlib import Path

directory = Path(sys.argv[1])

def train(run, timesteps, commit):
    attempts = directory / f"{run.name}.attempts"
    attempts.write_text(attempts.read_text() + "x" if attempts.exists() else "x")
    if run.seed == 2 or len(attempts.read_text()) == 1 and run.seed == 1:
        raise ArithmeticError("it broke")
    return original(run, timesteps, commit)

original, runner.train, runner.INTERVAL = runner.train, train, 0.01
runs = [Run("paper", "uniform", "Reacher-v4", seed) for seed in range(3)]
print(runner.run_all(runs, 1, Results(directory), 1, "sequential"))
"""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", script, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "['paper-uniform-Reacher-v4-2']", result.stderr
    assert "ArithmeticError: it broke" in result.stderr
    attempts = {path.stem[-1]: path.read_text() for path in tmp_path.glob("*.attempts")}
    assert attempts == {"0": "x", "1": "xx", "2": "xx"}
    assert len(Results(tmp_path).done()) == 2


def test_ray(tmp_path):
    pytest.importorskip("ray")
    selection = ["--stages", "table1", "--settings", "uniform", "clip_0.2", "--envs", "Reacher-v4", "--seeds", "0"]
    process = call("run", *selection, "--results", tmp_path, "--timesteps", "2048", "--backend", "ray", "--jobs", "2")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert Results(tmp_path).done() == {"paper-uniform-Reacher-v4-0", "paper-clip_0.2-Reacher-v4-0"}
    # By Ray's workers, not here
    assert "PoolActor" in output


def test_runs_of_another_length_are_refused(directory, tmp_path, capsys, monkeypatch):
    arguments = ["run", "--results", str(directory), "--timesteps", "2048", "--settings", "clip_0.2"]
    monkeypatch.setattr(sys, "argv", ["paper", *arguments])
    assert main() == 2
    assert "timesteps is 2048, but" in capsys.readouterr().err


def test_a_killed_worker_does_not_end_the_others(tmp_path):
    script = """
import os, sys
from pathlib import Path
from benchmarks.paper import runner
from benchmarks.paper.experiments import Run
from benchmarks.paper.results import Results

class Killer(Results):
    def save(self, run, result):
        if run.seed == 1:
            os._exit(1)
        super().save(run, result)

runs = [Run("paper", "uniform", "InvertedPendulum-v4", seed) for seed in range(5)]
runner.INTERVAL = 0.01
print(runner.run_all(runs, 1, Killer(Path(sys.argv[1])), 2, "loky"))
"""
    command = [sys.executable, "-W", "ignore", "-c", script, tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    failed = result.stdout.strip()
    assert "paper-uniform-InvertedPendulum-v4-1" in failed, result.stderr
    # At most the one beside it has failed with it, twice
    assert len(Results(tmp_path).done()) >= 3


def test_a_run_that_diverges_is_a_result(monkeypatch):
    def learn(self, timesteps, callback):
        self.num_timesteps = 300
        callback[1].returns, callback[1].lengths = [1.0, 3.0], [100, 150]
        raise NonFiniteUpdateError("policy")

    monkeypatch.setattr(PPOFixedKL, "learn", learn)
    result = training.train(Run("paper", "none", "Reacher-v4", 0), 2048, "")
    assert (result.row["diverged"], result.row["steps"], result.row["score"]) == (True, 300, 2.0)
    monkeypatch.setattr(PPOFixedKL, "learn", lambda self, timesteps, callback: [][0])
    with pytest.raises(IndexError):
        training.train(Run("paper", "none", "Reacher-v4", 0), 2048, "")


def test_committed_report_is_that_of_the_committed_results():
    if not report.REPORT.is_file():
        pytest.skip("the runs are not complete yet")
    text = report.report(
        Results(report.REPORT.parents[1] / "benchmarks" / "results" / "table1"),
        STAGES["table1"],
        report.CONSTANTS,
        "python -m benchmarks.paper table1",
    )
    assert report.REPORT.read_text(encoding="utf-8") == text


def test_table_3_trains_in_the_zoo(tmp_path):
    conf = ROOT / "hyperparams" / "paper" / "table3_mujoco.yml"
    options = ["--algo", "ppo_klpen", "--env", "Reacher-v4", "-conf", conf, "-params", "target_kl:0.03", "-n", "2048"]
    command = [sys.executable, "-W", "ignore", "-m", "rl_zoo3.train", *options, "--eval-freq", "-1", "--verbose", "0"]
    subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    model = PPOKLPen.load(tmp_path / "logs" / "ppo_klpen" / "Reacher-v4_1" / "Reacher-v4.zip")
    assert (model.n_steps, model.batch_size, model.n_epochs, model.target_kl) == (2048, 64, 10, 0.03)
    assert (model.max_grad_norm, model.normalize_advantage, model.vf_coef) == (None, "batch", 1.0)
    assert (model.action_space.high > 1e38).all()
