"""The reproduction of section 6.1: its statistics, its protocol, and the whole pipeline on tiny runs."""

import csv
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch as th
import yaml
from scipy import stats
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from benchmarks.paper import claims, experiments, figures, report, runner, statistics, training, words
from benchmarks.paper.__main__ import FIGURES, main
from benchmarks.paper.experiments import REFERENCES, SEEDS, SETTINGS, STAGES, TASKS, Run
from benchmarks.paper.results import DEFAULT, Results
from benchmarks.paper.scores import CONSTANTS, MissingRunsError, Scores, freeze, paper_scores, read_constants, rows_of
from benchmarks.paper.training import Result
from sb3_ppo_variants import NonFiniteUpdateError, PPOFixedKL, PPOKLPen, inductor

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


def test_bootstrap_draws_seeds_of_each_task_by_themselves():
    # With the same seeds in both tasks, every mean would be 0.5
    scores = np.array([[0.0, 1.0], [1.0, 0.0]])
    low, high = statistics.bootstrap(statistics.mean, [scores], np.random.default_rng(0), 1000)
    assert (low, high) == (0, 1)


def test_bootstrap_has_the_right_width_for_three_runs():
    # Variance 1 in each of 400 tasks: the mean of 3 runs in each has the deviation 1 / sqrt(1200)
    scores = np.tile([-1.0, 0.0, 1.0], (400, 1))
    low, high = statistics.bootstrap(statistics.mean, [scores], np.random.default_rng(0), 4000)
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(1200), rel=0.05)


def test_interval_of_runs_that_are_all_alike_is_their_score():
    # The middle half of 21 runs goes from 5.25 to 15.75: three quarters of the sixth, with 0.1, all with 0.2, 0.3 and 0.4, and
    # three quarters of the sixteenth, with 0.5
    scores = np.repeat([[0.0], [0.1], [0.2], [0.3], [0.4], [0.5], [0.6]], 3, axis=1)
    assert statistics.interquartile_mean(scores) == pytest.approx((0.075 + 2.7 + 0.375) / 10.5)
    low, high = statistics.bootstrap(statistics.interquartile_mean, [scores], np.random.default_rng(0), 10)
    assert (low, high) == (pytest.approx(0.3), pytest.approx(0.3))


def test_bootstrap_of_a_curve():
    scores = np.repeat([[0.0], [1.0]], 3, axis=1)
    low, high = statistics.bootstrap(
        lambda scores: statistics.performance_profile(scores, np.array([-1.0, 0.5])), [scores], np.random.default_rng(0), 10
    )
    assert low.tolist() == high.tolist() == [1, 0.5]


def test_permutation_test():
    def p_value(scores, others):
        return statistics.permutation_test(np.array(scores), np.array(others), np.random.default_rng(0))

    # Of the 6 ways to part the four, 2 have the largest difference
    assert p_value([[1.0, 2.0]], [[3.0, 4.0]]) == pytest.approx(1 / 3, abs=0.02)
    assert p_value([[1.0, 2.0]], [[1.0, 2.0]]) == 1
    # Of the 20 ways to part six, 2, in each of two tasks that are far from each other
    far = [[0.0, 1.0, 2.0], [100.0, 101.0, 102.0]], [[3.0, 4.0, 5.0], [103.0, 104.0, 105.0]]
    assert p_value(*far) == pytest.approx(2 / 400, abs=0.003)
    # The first is better by 10 in one task, and worse by 9 in the other, which is more than chance
    assert p_value([[10.0, 10.1, 10.2], [0.0, 0.1, 0.2]], [[0.0, 0.1, 0.2], [9.0, 9.1, 9.2]]) < 0.02


def test_permutation_test_finds_nothing_where_there_is_nothing():
    rng = np.random.default_rng(0)
    p_values = [
        statistics.permutation_test(*rng.normal(size=(2, 7, 3)) * [[[5], [1], [1], [1], [1], [1], [1]]], rng, 199)
        for _ in range(200)
    ]
    # 5% of 200 are 10, and the deviation of their number 3
    assert 2 <= np.sum(np.array(p_values) <= 0.05) <= 19


def test_largest_probability():
    # (1 - p)^10 = 0.05
    assert (1 - statistics.largest_probability(10)) ** 10 == pytest.approx(0.05)
    assert statistics.largest_probability(3) == pytest.approx(0.6316, abs=1e-4)


def test_lead_without_the_task_that_contributes_most():
    one, other = np.array([[1.0, 1.0], [5.0, 5.0], [2.0, 2.0]]), np.zeros((3, 2))
    assert (
        claims.without_a_task(["Reacher-v4", "Hopper-v4", "Swimmer-v4"], one, other) == "+1.50 (1.50 to 1.50) without Hopper"
    )


def test_rank_is_that_of_the_same_seeds():
    """More runs of two settings do not change which is first with the seeds that all have."""
    returns = {"clip_0.1": [40, 41, 42, 60, 60], "clip_0.2": [50, 51, 52, 0, 0], "clip_0.3": [10, 11, 12]}
    scores = made_up_scores({setting: {"Reacher-v4": of_task} for setting, of_task in returns.items()})
    assert claims.highest(scores).here.startswith("rank 1 of 3 with 3 seeds.")


def test_holm():
    # Smallest first: 3 * 0.01, 2 * 0.03, 1 * 0.04, and none below one before it
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    assert statistics.holm([0.9, 0.8]).tolist() == [1, 1]


def test_half_width_of_an_interval():
    # Deviation 1 and 4 runs on either side: the standard error is sqrt(1/4 + 1/4) = 0.7071, with 6 degrees of freedom, for
    # which tables of t have 2.447
    scores = np.array([[-1.0, 1.0, -1.0, 1.0]]) * np.sqrt(3 / 4)
    assert statistics.half_width(scores, scores) == pytest.approx(2.447 * 0.7071, abs=1e-3)
    # Only one of two tasks varies: 2 degrees of freedom, 4.303
    scores = np.array([[-1.0, 0.0, 1.0], [5.0, 5.0, 5.0]])
    assert statistics.half_width(scores) == pytest.approx(4.303 * np.sqrt(1 / 3) / 2, abs=1e-3)
    assert statistics.half_width(np.ones((2, 3))) == 0


def test_half_width_covers_where_one_task_varies_most():
    rng, deviations = np.random.default_rng(0), np.array([5.0, 1, 1, 1, 1, 1, 1])[:, None]
    samples = rng.normal(size=(400, 7, 3)) * deviations
    covers = [abs(statistics.mean(sample)) <= statistics.half_width(sample) for sample in samples]
    # 95% of 400, within 3 deviations of 1.1%
    assert np.mean(covers) == pytest.approx(0.95, abs=0.033)


def test_detectable_difference():
    # Variances 1 + 1 and 2 + 2, on average 3 in two tasks; 1.960 + 0.842 standard errors of sqrt(2 * 3 / 6) / 2
    samples = [np.sqrt(variance) * np.array([[-1.0, 0.0, 1.0]] * 2) for variance in (1, 2)]
    assert statistics.detectable_difference(samples, 6) == pytest.approx((1.960 + 0.842) / 2, abs=1e-3)


def test_rank_correlation():
    # 1 - 6 * (0 + 1 + 1 + 0) / (4 * 15)
    x = np.array([[10.0, 20.0, 30.0, 40.0], [40.0, 30.0, 20.0, 10.0]])
    np.testing.assert_allclose(statistics.rank_correlation(x, np.array([1.0, 3.0, 2.0, 4.0])), [0.8, -0.8])
    # Of the 24 orders of four, one has 1, and three 0.8: one for each pair of neighbours that changes places
    chance = statistics.chance_of_correlation(x[0], np.array([1.0, 3.0, 2.0, 4.0]), np.random.default_rng(0))
    assert chance == pytest.approx(4 / 24, abs=0.02)


def test_the_plan_is_the_papers():
    table1 = STAGES["table1"]
    assert len(SETTINGS) == 12
    assert list(paper_scores()) == list(SETTINGS)[:-1]
    # 231 runs, and the twelfth setting and the two references
    trained = [run for run in table1 if run.setting in SETTINGS]
    assert len([run for run in trained if run.setting != "policy_gradient"]) == 231
    assert len(trained) == 12 * 7 * 3
    runs = [run.name for stage in STAGES.values() for run in stage]
    assert len(set(runs)) == len(runs)
    # And the policy before training with bounded actions
    assert len(STAGES["details_sb3"]) == 2 * 7 * 3 + 7 * 3
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


def assert_has(name, env, expected):
    entry = yaml.safe_load((ROOT / "hyperparams" / "paper" / f"{name}.yml").read_text(encoding="utf-8"))[env]
    assert {key: entry[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("env", "n_envs"),
    [("RoboschoolHumanoid-v1", 32), ("RoboschoolHumanoidFlagrun-v1", 128), ("RoboschoolHumanoidFlagrunHarder-v1", 128)],
)
def test_table_4(env, n_envs):
    expected = {"n_steps": 512, "n_epochs": 15, "batch_size": 4096, "gamma": 0.99, "gae_lambda": 0.95, "n_envs": n_envs}
    assert_has("table4_roboschool", env, expected)


def test_table_5():
    expected = {"n_steps": 128, "learning_rate": "lin_2.5e-4", "n_epochs": 3, "batch_size": 32 * 8, "gamma": 0.99}
    expected |= {"gae_lambda": 0.95, "n_envs": 8, "clip_range": "lin_0.1", "vf_coef": 1.0, "ent_coef": 0.01}
    assert_has("table5_atari", "atari", expected | {"n_timesteps": 10_000_000})


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


@pytest.mark.parametrize("compiles", [False, True])
def test_kl_is_that_of_the_filtered_observations(compiles, monkeypatch):
    """A policy that does not change has none, whatever becomes of its observations between rollout and update."""
    monkeypatch.setattr(inductor, "compile_graph", lambda graph, arguments: lambda arguments: graph(*arguments))
    run = Run("paper", "adaptive_kl_0.01", "Reacher-v4", 0)
    model = training.make_model(run, make_vec_env(lambda: training.make_env(run), seed=0), compile=compiles)
    model.lr_schedule = lambda progress: 0.0
    with th.no_grad():
        model.policy.action_net.weight.mul_(100)
    model.learn(2048, callback=[training.ObservationFilter(model.env)])
    assert model.logger.name_to_value["train/kl"] == pytest.approx(0, abs=1e-9)


def test_normalized_rewards():
    run = Run("normalized_rewards", "none", "Reacher-v4", 0)
    model = training.make_model(run, make_vec_env(lambda: training.make_env(run), seed=0), compile=False)
    model.learn(2048, callback=[training.ObservationFilter(model.env)])
    # Of returns, as in baselines: the first rewards of about -1 are more than a deviation of few returns, and are clipped
    assert model.rollout_buffer.rewards.min() == -10
    assert np.abs(model.rollout_buffer.rewards[1000:]).max() < 1
    # The score is of the returns as they are
    assert np.mean([episode["r"] for episode in model.ep_info_buffer]) < -50


def test_further_variants_change_one_thing():
    def made(variant):
        run = Run(variant, "none", "HalfCheetah-v4", 0)
        return training.make_model(run, make_vec_env(lambda: training.make_env(run), seed=0))

    paper, raw, annealed, epsilon = map(made, ("paper", "raw_observations", "annealed", "small_epsilon"))
    # Not normalised
    assert isinstance(paper.env, VecNormalize)
    assert isinstance(raw.env, DummyVecEnv)
    assert [model.lr_schedule(0.5) for model in (paper, annealed)] == [3e-4, 1.5e-4]
    assert [model.policy.optimizer.param_groups[0]["eps"] for model in (paper, epsilon)] == [1e-5, 1e-8]
    assert (paper.normalize_advantage, made("raw_advantages").normalize_advantage) == ("batch", False)
    for other in (raw, annealed, epsilon):
        for one, parameter in zip(paper.policy.parameters(), other.policy.parameters(), strict=True):
            assert th.equal(one, parameter)
    with_raw_observations = training.train(Run("raw_observations", "none", "Reacher-v4", 0), 2048, "")
    assert with_raw_observations.row["steps"] == 2048
    assert f"Python {platform.python_version()} on {platform.system()} {platform.machine()}; sb3_ppo_variants 0." in str(
        with_raw_observations.row["versions"]
    )


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
        assert {name: str(value) for name, value in result.row.items()} == row
        assert len(result.curves["returns"]) == int(row["episodes"])
        assert float(row["score"]) == pytest.approx(result.curves["returns"][-100:].mean(), abs=1e-3)
        if row["setting"] in SETTINGS:
            assert int(row["steps"]) == 4096
            assert result.curves["lengths"].sum() <= 4096
            assert len(result.curves["kl"]) == len(result.curves["kl_coef"]) == 2
    adaptive = Results(directory).load(Run("paper", "adaptive_kl_0.01", "Reacher-v4", 0)).curves
    assert adaptive["kl_coef"][0] == 1


def test_commands_make_runs_again(directory, tmp_path, capsys, monkeypatch):
    selection = ["--settings", "clip_0.2", "--envs", "Reacher-v4", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", ["paper", "commands", "--results", str(directory), *selection])
    assert main() == 0
    checkout, printed = capsys.readouterr().out.strip().split(" && ")
    assert checkout.startswith("git checkout ")
    assert printed.startswith("python -m benchmarks.paper run ")
    again = call(*shlex.split(printed, comments=True)[3:-1], tmp_path)
    output, _ = again.communicate()
    assert again.returncode == 0, output
    run = Run("paper", "clip_0.2", "Reacher-v4", 1)
    expected, actual = Results(directory).load(run), Results(tmp_path).load(run)
    np.testing.assert_array_equal(actual.curves["returns"], expected.curves["returns"])
    assert actual.row["score"] == expected.row["score"]


def test_compiled_runs_are_reproducible(monkeypatch):
    original = training.make_model
    monkeypatch.setattr(training, "make_model", lambda run, env: original(run, env, compile=True))
    first, second = (training.train(Run("paper", "adaptive_kl_0.01", "Reacher-v4", 0), 4096, "") for _ in range(2))
    for name, curve in first.curves.items():
        np.testing.assert_array_equal(second.curves[name], curve)


TINY = {"table1": [run for run in STAGES["table1"] if run.setting in SETTINGS_USED + list(REFERENCES)]}
TINY["table1"] = [run for run in TINY["table1"] if run.env in ENVS_USED and run.seed < 2]


def test_report_and_figures_of_real_runs(directory, tmp_path):
    results, constants = Results(directory), tmp_path / "constants.csv"
    freeze(results, constants, TINY["table1"])
    # Once and for all
    with pytest.raises(FileExistsError):
        freeze(results, constants, TINY["table1"])
    frozen, rows = read_constants(constants), results.rows()
    for env in ENVS_USED:
        of_env = {run: row["score"] for run, row in rows.items() if run.env == env}
        best = max((run for run in of_env if run.setting in SETTINGS), key=of_env.get)
        assert frozen[env]["best_run_of"] == best.setting
        assert frozen[env]["best_run"] == pytest.approx(of_env[best], abs=1e-4)
        untrained = [score for run, score in of_env.items() if run.setting == "untrained"]
        assert frozen[env]["untrained"] == pytest.approx(sum(untrained) / 2, abs=1e-4)

    # Runs so short are not better than a random policy
    constants.write_text(
        "env,uniform,untrained,best_run,best_run_of,best_setting,best_setting_of\n"
        "InvertedPendulum-v4,1,2,50,clip_0.2,40,clip_0.2\nReacher-v4,-200,-190,-4,clip_0.2,-5,clip_0.2\n"
    )
    text = report.report(results, constants, TINY)
    assert "| Clipping, epsilon = 0.2 | 0.82 | " in text
    # The same report from the same results
    assert report.report(Results(directory), constants, TINY) == text

    figures.draw(results, tmp_path / "figures", constants, TINY["table1"])
    names = {"figure1", "figure2", "learning_curves", "performance_profile", "kl"}
    expected_files = {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == expected_files
    drawn_from = figures.of_runs(Scores(rows_of(results, TINY["table1"]), frozen))
    assert drawn_from in (tmp_path / "figures" / "kl.svg").read_text(encoding="utf-8")
    fewer = Scores(rows_of(results, TINY["table1"][1:]), frozen)
    assert figures.of_runs(fewer) != drawn_from


# Scores of the made-up study, the same in each task; seeds 0, 1 and 2 are 1 below, at, and 1 above
MADE_UP = {
    "uniform": 0,
    "none": 10,
    "clip_0.1": 70,
    "clip_0.2": 80,
    "clip_0.3": 85,
    "adaptive_kl_0.003": 60,
    "adaptive_kl_0.01": 79.9,
    "adaptive_kl_0.03": 50,
    "fixed_kl_0.3": 40,
    "fixed_kl_1": 45,
    "fixed_kl_3": 60,
    "fixed_kl_10": 30,
    "policy_gradient": 75,
}


def made_up_score(run):
    if run.env == "HalfCheetah-v4":
        if run.setting == "untrained":
            return -200
        if run.setting == "none":
            return -300 if run.variant in ("paper", "clipped_gradient") else 20
    return MADE_UP.get(run.setting, 0)


def save_made_up(directory, stages, score):
    """Results whose report can be worked out by hand."""
    results = Results(directory)
    results.curves.mkdir()
    for run in (run for stage in stages for run in STAGES[stage]):
        diverged = run == Run("paper", "none", "Swimmer-v4", 2)
        row = asdict(run) | {
            "timesteps": 1_000_000,
            "steps": 4096 if diverged else 1_001_472,
            "diverged": diverged,
            "episodes": 3,
            "score": score(run) + run.seed - 1,
            "seconds": 100.0,
            "versions": "torch 1",
            "commit": "abc",
        }
        kl = np.array([0.1, 0.5, 1.0, 2.0]) * (
            SETTINGS[run.setting].kwargs.get("target_kl", 1) if run.setting in SETTINGS else 1
        )
        curves = {"lengths": [10, 10, 20], "returns": [1.0, 3.0, 8.0], "kl": kl, "kl_coef": kl}
        results.save(run, Result(row, {name: np.array(values) for name, values in curves.items()}))
    constants = directory / "constants.csv"
    lines = ["env,uniform,untrained,best_run,best_run_of,best_setting,best_setting_of"]
    lines += [f"{env},0,{-200 if env == 'HalfCheetah-v4' else 0},100,clip_0.3,90,clip_0.3" for env in TASKS]
    constants.write_text("\n".join(lines))
    return results, constants


@pytest.fixture
def made_up(tmp_path):
    """The whole study but for more seeds and one of the details."""
    results, constants = save_made_up(tmp_path, ["table1", "details_sb3", "details_normalized_rewards"], made_up_score)
    (results.curves / f"{STAGES['details_normalized_rewards'][-1].name}.npz").unlink()
    return results, constants


def line_of(text, start):
    return next(line for line in text.splitlines() if line.startswith(f"| {start}"))


def test_report_says_what_the_results_show(made_up):
    text = report.report(*made_up)

    def line(start):
        return line_of(text, start)

    # Mean 80 of 100 in each task. Deviation 0.01: to either side, the interval is 2.145 (t, 14 degrees of freedom)
    # sqrt(7 / 3) 0.01 / 7 = 0.005, and that of the difference from the paper sqrt(2) times as much. With the policy before
    # training as 0, HalfCheetah has 280 of 300
    line_of_table_1 = "| 0.80 (0.80 to 0.80) | -0.02 (-0.03 to -0.01) | 0.82 (0.81 to 0.82) | 21 |"
    assert line("Clipping, epsilon = 0.2 | 0.82") == f"| Clipping, epsilon = 0.2 | 0.82 {line_of_table_1}"
    # (-3 + 6 * 0.1) / 7
    assert "| No clipping or penalty | -0.39 | -0.34 (" in text
    # 85 is more than 80, and 79.9 nearly as much
    highest = line("Clipping at 0.2 has")
    assert (
        "| rank 2 of 11 with 3 seeds. Behind: Clipping, epsilon = 0.3. "
        "Better than: No clipping or penalty; Clipping, epsilon = 0.1;" in highest
    )
    assert "Worse than: Clipping, epsilon = 0.3. No significant difference from: Adaptive KL, d_targ = 0.01. |" in highest
    assert highest.endswith("| **not** as in the paper | 4 of 4 readings |")
    pair = line("Clipping, epsilon = 0.2 has a higher score than Fixed KL, beta = 3, by 0.10 | by +0.20")
    assert " with 3 seeds, and +0.20 (0.19 to 0.21) without HalfCheetah; ahead in 63 of 63 pairs of runs; " in pair
    assert pair.endswith("; adjusted p < 0.001 | as in the paper | 4 of 4 readings |")
    # In each task, 79, 80 and 81 are more than 78.9, more than 78.9 and 79.9, and more than all: 6 of 9 pairs
    pair = line("Clipping, epsilon = 0.2 has a higher score than Adaptive")
    assert "; ahead in 42 of 63 pairs of runs; adjusted p 0." in pair
    assert pair.endswith("| inconclusive | 4 of 4 readings |")
    # If 0 is the policy before training: HalfCheetah has (-300 + 200) / 300, and the mean is (-1/3 + 0.6) / 7 > 0
    assert line("No clipping or penalty has a negative score, -0.39 | -0.34 (").endswith(
        "| as in the paper | 2 of 4 readings |"
    )
    because = line(
        "No clipping or penalty is negative because of HalfCheetah | the lowest task is HalfCheetah with 3 of 3 seeds; "
    )
    assert (
        "it is HalfCheetah-v4, with -3.00. HalfCheetah has -3.00, and all tasks but the lowest have 0.10 on average" in because
    )
    assert because.endswith("| as in the paper | 4 of 4 readings |")
    # -1/3 is not below 7 * -0.39
    very = line("No clipping or penalty has a very negative score on HalfCheetah")
    assert "| scores if that policy is 0: -0.34, -0.33, -0.33; below 0 in 3 of 3 runs, below -2.73, which " in very
    # If the probability were 0.63, none of three would have been as low with a probability of 0.05
    assert " in 0. That leaves it a probability of up to 63% | not seen here |" in very
    assert line("L^PG over several epochs is similar").endswith("| **not** as in the paper | 4 of 4 readings |")
    # 0.30 instead of 0.69
    assert (
        "and by 0.39 at most\n  (Fixed KL, beta = 10); 10 of these differences\n  are significant (95% intervals of ±0.01 to"
        in text
    )
    # The squares of the differences of the ranks add up to 69, and either column has two that are equal: 1 - 69 / 219
    assert 'with "no clipping or penalty" included,\n  0.68 (p = 0.0' in text
    # Clipping at 0.3 is better, and fixed KL is best with beta = 3
    assert (
        "Clipping at 0.2 ranks 2 of 11 under the [four readings](#the-reading-of-the-score) of what scores 0 and 1, but"
        in text
    )
    assert "of\n  the resamples of the bootstrap, 0% have it highest." in text
    assert (
        "of each kind is the paper's for 2 of the 3 kinds.\n  With 3 seeds, clipping at 0.2 does not differ significantly "
        "from: Adaptive KL, d_targ = 0.01.\n" in text
    )
    # 2.802 sqrt(2 * 7 / 3) 0.01 / 7
    assert "detects a difference of 0.01 with 3 and 0.00 with 10 seeds with a power of 80%" in text
    # 235 / 3 against 189.9 / 3 and 175 / 4, in hundredths
    assert "clipping leads adaptive KL by +0.15 (0.14 to 0.16), or +0.15 (0.14 to 0.16) without HalfCheetah, and fixed" in text
    kinds = (
        "clipping leads adaptive KL by +0.15 (0.14 to 0.16), adjusted p < 0.001, and +0.15 (0.14 to 0.16) without HalfCheetah"
    )
    penalties = line("The KL penalty performs worse")
    assert f"{kinds}; fixed KL by +0.35 (0.34 to 0.35), adjusted p < 0.001, and" in penalties
    assert penalties.endswith("| as in the paper | 4 of 4 readings |")
    # On average 59.99 / 90 against 0.715; if 0 is the policy before training, HalfCheetah has 259.99 / 290
    assert "With\n  the best setting as 1, on the other hand, they are between -0.05 and -0.02 away" in text
    # All seeds and all tasks have the same order
    limited = [name for name in MADE_UP if "_0" in name or "fixed" in name]
    papers = [paper_scores()[name] for name in limited]
    of_limited = f"{stats.spearmanr([MADE_UP[name] for name in limited], papers).statistic:.2f}"
    assert f"of the two columns is {of_limited} (p" in text
    # Resampled seeds change the order of 79.9 and 80, and of 60 and 60, only
    orders = [
        stats.spearmanr([(MADE_UP | {"adaptive_kl_0.01": x, "fixed_kl_3": y})[name] for name in limited], papers).statistic
        for x in (79.9, 80.1)
        for y in (59.9, 60.1)
    ]
    assert f"bootstrapped over the seeds, is {min(orders):.2f} to {max(orders):.2f};" in text
    assert f"between {of_limited} and {of_limited} with a single seed, and between {of_limited} and {of_limited} wi" in text
    assert "Its lowest task is HalfCheetah, as in the paper." in text
    assert line("Clipping, epsilon = 0.3 | +0.12 | -0.05 (").endswith("| 0 of 63 | < 0.001 | < 0.001 |")
    assert line("HalfCheetah-v4 | -301, -300, -299") == "| HalfCheetah-v4 | -301, -300, -299 | -3.00 | -0.33 | 3 |"
    # A quarter of the KL above, half below, and beta like the KL
    cells = "50% | 25% | 25% | 25% | 0.75 | 0.9 | 2 | 2 | 0.003 to 0.06 | 0 of 84"
    assert line("Adaptive KL, d_targ = 0.03 | 50%") == f"| Adaptive KL, d_targ = 0.03 | {cells} |"
    assert "Here, 75% to 75%\nof the updates of a setting leave the band, and 25% to 25% miss d_targ by more than a" in text
    assert "marked by † below: No clipping or penalty on Swimmer-v4, seed 2, after 4096 timesteps." in text
    # 80 of 90
    assert line("Clipping, epsilon = 0.2 | 0.82 | 0.80 (0.80 to 0.80) | 0.89 (")
    # All of the first part of the details are there, one of the second is not
    assert line("No clipping or penalty; four of SB3's").endswith("| 19.0, 20.0, 21.0 | 0 |")
    # Of the runs on Swimmer, seed 2 has ended early
    assert "| 9.0, 10.0, 11.0† |" in line("Swimmer-v4 | 9.0")
    assert " | 10.0 ± 1.0† | 10.0 ± 1.0 |" in line("No clipping or penalty | -300 ± 1.0")
    assert "rewards normalised" not in text
    # (0.2 + 6 * 0.1) / 7, and (0.2 + 3) / 7 more
    with_sb3s = "\n  With four of SB3's conventions, "
    assert f"{with_sb3s}no clipping or penalty scores 0.11 (0.11 to 0.12), a difference of +0.46 (0.45 to 0.46).\n" in text
    assert f"{with_sb3s}clipping, epsilon = 0.2 scores 0.80 (0.80 to 0.80), a difference of +0.00 (-0.01 to 0.01).\n" in text
    assert "Of the 3 runs of no clipping or penalty on HalfCheetah with other [details](" in text
    assert "\n  0 end below the policy before training.\n" in text
    # 20 of -200 to 100, by seven tasks
    assert "It adds +0.10 with four of SB3's conventions.\n  None of these is within a factor of 2 of -0.39.\n" in text
    # -0.34 + 0.39, and 0.04 + 0.39
    assert "the differences from the paper's -0.39 are\n  +0.05 (0.04 to 0.05) and +0.43 (0.42 to 0.43)." in text
    verdicts = text[text.index("\n- As in the paper: ") : text.index("In short:")]
    assert [line.split(":")[0] for line in verdicts.strip().splitlines()] == [
        "- As in the paper",
        "- Inconclusive",
        "- Not seen here",
        "- **not** as in the paper",
    ]
    assert (
        "\n- Inconclusive: Clipping, epsilon = 0.2 has a higher score than Adaptive KL, d_targ = 0.01, by 0.08.\n" in verdicts
    )
    assert "\n- seeds_none: 0 of 49 runs\n- details_normalized_rewards: 41 of 42 runs\n" in text
    assert "git checkout abc && python -m benchmarks.paper run --variants paper --settings none --envs HalfCheetah-v4" in text


def test_report_with_all_parts_of_the_study_and_other_results(tmp_path):
    def score(run):
        if run.setting == "clip_0.2":
            return 95
        if run.env == "HalfCheetah-v4" and run.setting in ("none", "policy_gradient"):
            return -1100 if run.seed > 0 else -100
        return {**MADE_UP, "policy_gradient": 10, "clip_0.3": 10}.get(run.setting, 0)

    text = report.report(*save_made_up(tmp_path, STAGES, score))
    highest = line_of(text, "Clipping at 0.2 has")
    assert highest.startswith(
        "| Clipping at 0.2 has the highest score | rank 1 of 11 with 3 seeds. Better than: No clipping or penalty; "
    )
    assert highest.endswith("; Fixed KL, beta = 10. | as in the paper | 4 of 4 readings |")
    # Of ten seeds, nine end at (-1100 + 200) / 300 with the policy before training as 0, and one above it
    very = line_of(text, "No clipping or penalty has a very")
    assert "| scores if that policy is 0: 0.33, -3.00, -3.00" in very
    assert "; below 0 in 9 of 10 runs, below -2.73, which the paper's mean takes if the other tasks have 0, in 9 |" in very
    assert "| in some runs |" in very
    # The three seeds that both have are alike, but differ by far more than the margin from each other
    assert line_of(text, "L^PG over several epochs is similar").endswith("| inconclusive | 4 of 4 readings |")
    assert "Table 1 with the seeds 0 to 9, for" in text
    more_seeds = text.split("## More seeds")[1]
    assert line_of(more_seeds, "Clipping, epsilon = 0.2").endswith("| 70 |")
    # Scores are 95 or 79.9, and from -1 to 8 more; the interval of the seeds 3 to 9 is 2.018 (t, 42 degrees of freedom)
    # sqrt(2.16^2 / 7 / 7) / 100 = 0.006 to either side
    assert "\n|  | paper | seeds 0 to 2 | seeds 3 to 9 | seeds 0 to 9 | p, seeds 3 to 9 | p, seeds 0 to 9 |\n" in more_seeds
    cells = "| 0.82 | 0.95 (0.95 to 0.95) | 1.00 (0.99 to 1.01) | 0.98 (0.98 to 0.99) |  |  |"
    assert f"\n| Clipping, epsilon = 0.2 {cells}\n" in more_seeds
    assert line_of(more_seeds, "Clipping, epsilon = 0.2, minus Adaptive KL, d_targ = 0.01 | +0.08 | +0.15 (").endswith(
        " | < 0.001 | < 0.001 |"
    )
    assert "| +0.15 (0.14 to 0.16) | +0.15 (0.14 to 0.16) | < 0.001 | < 0.001 |" in more_seeds
    assert "\n- **More seeds.** With 10 seeds, No clipping or penalty scores " in text
    assert "\n  Clipping, epsilon = 0.2, minus Adaptive KL, d_targ = 0.01: +0.15 (0.14 to 0.16), adjusted p < 0.001.\n" in text
    pair = line_of(text, "Clipping, epsilon = 0.2 has a higher score than Fixed")
    assert "; ahead in 700 of 700 pairs of runs; " in pair
    assert " with 10 seeds, and " in pair
    assert "No clipping or penalty; rewards normalised, as in ppo2" in text
    # In each of ten variants, seeds 1 and 2 end at -3; where actions are bounded, the policy before training has 0
    assert "Of the 30 runs of no clipping or penalty on HalfCheetah with other [details](" in text
    below = text.split("\n  22 end below the policy before training: ")[1].split(".\n")[0].split("; ")
    assert len(below) == 10
    assert "3 of 3 with actions clipped to their bounds" in below
    assert "2 of 3 with step size annealed to 0" in below
    # (1 / 3 - 3 - 3 + 1 / 300) / 3 / 7 = -0.27 with the policy before training as 0, and half of -0.39 is more
    assert "; -0.27 with step size annealed to 0; " in text
    assert "\n  10 of these are within a factor of 2 of -0.39." in text
    # On HalfCheetah alone
    cells = "|  |  |  | -101, -1100, -1099 | 2 |"
    assert line_of(text, "No clipping or penalty; step size") == f"| No clipping or penalty; step size annealed to 0 {cells}"
    assert "not part of this report" not in text


@pytest.mark.parametrize(
    ("cheetah", "reacher", "verdicts"),
    [
        # The mean may be of either sign
        ([-100, 100, 100], [-90, 90, -90], (claims.OPEN, claims.MIXED)),
        ([-50, -51, -52], [-60, -61, -62], (claims.SAME, claims.UNSEEN)),
        ([51, 52, 53], [50, 51, 52], (claims.OPPOSITE, claims.UNSEEN)),
        ([-90, -91, -92], [50, 51, 52], (claims.SAME, claims.SAME)),
    ],
)
def test_verdicts_on_no_clipping(cheetah, reacher, verdicts):
    scores = made_up_scores({"none": {"HalfCheetah-v4": cheetah, "Reacher-v4": reacher}})
    assert (claims.negative(scores).verdict, claims.because_of_cheetah(scores).verdict) == verdicts


@pytest.mark.parametrize(
    ("gradient", "verdict"),
    # The margin is 8 of 100
    [
        ([-900, -901, -902], claims.SAME),
        ([13, 14, 15], claims.SAME),
        ([20, 21, 22], claims.OPPOSITE),
        ([8, 18, 28], claims.OPEN),
    ],
)
def test_verdicts_on_policy_gradient(gradient, verdict):
    scores = made_up_scores({"none": {"Reacher-v4": [9, 10, 11]}, "policy_gradient": {"Reacher-v4": gradient}})
    assert claims.similar_or_worse(scores).verdict == verdict


def made_up_scores(returns):
    """Scores of which 0 is 0 and 1 is 100."""
    rows = {
        Run("paper", setting, env, seed): {"score": score, "timesteps": 1}
        for setting, by_task in returns.items()
        for env, of_task in by_task.items()
        for seed, score in enumerate(of_task)
    }
    constants = {"uniform": 0, "untrained": 0, "best_run": 100, "best_setting": 100}
    return Scores(rows, dict.fromkeys(TASKS, constants))


def test_numbers_in_words():
    assert [words.format_score(score) for score in (-0.001, 0.125, -99.994, -1234.5)] == [
        "0.00",
        "0.12",
        "-99.99",
        "-1.2e+03",
    ]
    assert words.format_score(0.5, sign="+") == "+0.50"
    assert [words.format_p(p) for p in (0.0004, 0.0456, 0.456)] == ["< 0.001", "0.046", "0.46"]
    assert words.pairs_in_words(np.array([[2.0] * 20]), np.array([[1.0] * 30 + [2.0]])) == "610 of 620"
    assert words.pairs_in_words(np.array([[2.0] * 21]), np.array([[1.0] * 50 + [2.0]])) == "1060.5 of 1071"
    assert [words.format_return(number) for number in (-3.25, 99.96, 1443.4, -14018407.3)] == [
        "-3.2",
        "100.0",
        "1443",
        "-1.4e+07",
    ]


def test_report_needs_all_runs_of_table_1(made_up, capsys, monkeypatch, tmp_path):
    results, constants = made_up
    (results.curves / "paper-clip_0.2-Reacher-v4-2.npz").unlink()
    with pytest.raises(MissingRunsError, match=r"1 of 294 runs are missing: paper-clip_0\.2-Reacher-v4-2"):
        report.report(results, constants)
    output = tmp_path / "paper.md"
    options = ["--results", str(results.directory), "--constants", str(constants)]
    monkeypatch.setattr(sys, "argv", ["paper", "table1", *options, "--output", str(output)])
    assert main() == 2
    assert "1 of 294 runs are missing: paper-clip_0.2-Reacher-v4-2" in capsys.readouterr().err
    assert not output.exists()
    monkeypatch.setattr(sys, "argv", ["paper", "status", "--results", str(results.directory), "--settings", "clip_0.2"])
    assert main() == 1
    assert "missing: Reacher-v4 seed 2, HalfCheetah-v4 seed 3, " in capsys.readouterr().out


def test_report_needs_the_constants(made_up, tmp_path, capsys, monkeypatch):
    options = ["--results", str(made_up[0].directory), "--constants", str(tmp_path / "none.csv")]
    monkeypatch.setattr(sys, "argv", ["paper", "table1", *options])
    assert main() == 2
    assert "none.csv does not exist: once all runs of Table 1 are there, `freeze` writes it" in capsys.readouterr().err


def test_damaged_and_renamed_files_are_named(made_up):
    results, _ = made_up
    path = results.curves / "paper-clip_0.2-Reacher-v4-2.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"paper-clip_0\.2-Reacher-v4-2\.npz cannot be read"):
        results.rows()
    path.write_bytes(whole)
    path.rename(path.with_stem("paper-clip_0.2-Reacher-v4-3"))
    with pytest.raises(ValueError, match=r"v4-3.npz has the run paper-clip_0.2-Reacher-v4-2: its name"):
        results.rows()


def test_running_score():
    curves = {"lengths": np.array([10, 10, 20]), "returns": np.array([1.0, 3.0, 8.0])}
    scores = figures.running_score(curves, np.array([5, 10, 25, 40, 100]))
    np.testing.assert_allclose(scores, [np.nan, 1, 2, 4, 4])


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


def test_running_geometric_mean():
    curves = [np.array([1.0, 4.0, 2.0]), np.array([4.0])]
    # 2, 4, 2 over the curves
    np.testing.assert_allclose(figures.running_geometric_mean(curves, 2), [8**0.5, 8**0.5])
    np.testing.assert_allclose(figures.running_geometric_mean(curves, 20), [16 ** (1 / 3)])


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
    assert len(Results(tmp_path).rows()) == 2


def test_ray(tmp_path):
    pytest.importorskip("ray")
    selection = ["--stages", "table1", "--settings", "uniform", "clip_0.2", "--envs", "Reacher-v4", "--seeds", "0"]
    process = call("run", *selection, "--results", tmp_path, "--timesteps", "2048", "--backend", "ray", "--jobs", "2")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert {run.name for run in Results(tmp_path).rows()} == {"paper-uniform-Reacher-v4-0", "paper-clip_0.2-Reacher-v4-0"}
    # By Ray's workers, not here
    assert "PoolActor" in output


def test_runs_of_another_length_are_refused(directory, tmp_path, capsys, monkeypatch):
    arguments = ["run", "--results", str(directory), "--timesteps", "2048", "--settings", "clip_0.2"]
    monkeypatch.setattr(sys, "argv", ["paper", *arguments])
    assert main() == 2
    assert "timesteps is 2048, but" in capsys.readouterr().err


def test_files_of_killed_runs_are_removed(tmp_path):
    unfinished = tmp_path / "curves" / "paper-clip_0.2-Reacher-v4-0abc.unfinished"
    unfinished.parent.mkdir()
    unfinished.touch()
    with Results(tmp_path).lock():
        assert not unfinished.exists()


def test_one_program_at_a_time(tmp_path):
    with Results(tmp_path).lock(), pytest.raises(ValueError, match=f"Another program is making runs in {tmp_path}"):
        runner.run_all([Run("paper", "uniform", "Reacher-v4", 0)], 1, Results(tmp_path), 1, "sequential")


@pytest.mark.parametrize("arguments", [("--jobs", "0"), ("--timesteps", "0"), ("--seeds", "99"), ("--settings", "clip")])
def test_bad_arguments_are_named(arguments, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["paper", "run", *arguments])
    with pytest.raises(SystemExit):
        main()
    # Its last line: the usage has all names
    error = capsys.readouterr().err.splitlines()[-1]
    assert all(argument in error for argument in arguments)


def test_table_is_written_although_it_could_not_be_for_a_while(tmp_path, monkeypatch, capsys):
    original, calls = Results.write_table, []

    def write_table(self):
        calls.append(self)
        if len(calls) == 2:
            raise OSError("No space left on device")
        original(self)

    monkeypatch.setattr(Results, "write_table", write_table)
    monkeypatch.setattr(runner, "INTERVAL", 0.01)
    runs = [Run("paper", "uniform", "InvertedPendulum-v4", seed) for seed in range(2)]
    assert runner.run_all(runs, 1, Results(tmp_path), 1, "sequential") == []
    assert len((tmp_path / "runs.csv").read_text().splitlines()) == 3
    assert "runs.csv is not up to date: No space left" in capsys.readouterr().err


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_killed_worker_does_not_end_the_others(tmp_path, jobs):
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
print(runner.run_all(runs, 1, Killer(Path(sys.argv[1])), int(sys.argv[2]), "loky"))
"""
    command = [sys.executable, "-W", "ignore", "-c", script, tmp_path, jobs]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "['paper-uniform-InvertedPendulum-v4-1']", result.stderr
    assert {run.seed for run in Results(tmp_path).rows()} == {0, 2, 3, 4}


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


def test_committed_table_is_that_of_the_committed_runs():
    results = Results(DEFAULT)
    with results.table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{name: str(value) for name, value in row.items()} for _, row in sorted(results.rows().items())]
    assert {row["timesteps"] for row in rows} == {"1000000"}


def test_committed_runs_of_a_seed_start_alike():
    """All settings have the same first rollout, to the last bit: the same policy and the same random numbers."""
    results = Results(DEFAULT)
    for env in TASKS:
        for seed in SEEDS:
            first = set()
            for setting in SETTINGS:
                curves = results.load(Run("paper", setting, env, seed)).curves
                in_first_rollout = curves["lengths"].cumsum() <= 2048
                first.add(tuple(curves["returns"][in_first_rollout].tolist()))
            assert len(first) == 1, (env, seed)
            assert len(first.pop()) >= 2


def test_committed_report_is_that_of_the_committed_runs(tmp_path):
    freeze(Results(DEFAULT), tmp_path / "constants.csv", STAGES["table1"])
    assert (tmp_path / "constants.csv").read_text() == CONSTANTS.read_text()
    text = report.report(Results(DEFAULT), CONSTANTS)
    assert report.REPORT.read_text(encoding="utf-8") == text
    table_1 = next(block for block in text.split("\n\n") if block.startswith("| setting | paper |"))
    assert table_1 in (ROOT / "README.md").read_text(encoding="utf-8")
    drawn_from = figures.of_runs(Scores(rows_of(Results(DEFAULT), STAGES["table1"]), read_constants(CONSTANTS)))
    for name in ("figure1", "figure2", "learning_curves", "performance_profile", "kl"):
        assert drawn_from in (FIGURES / f"{name}.svg").read_text(encoding="utf-8")
        assert (FIGURES / f"{name}.png").is_file()


def test_table_3_trains_in_the_zoo(tmp_path):
    conf = ROOT / "hyperparams" / "paper" / "table3_mujoco.yml"
    options = ["--algo", "ppo_klpen", "--env", "Reacher-v4", "-conf", conf, "-params", "target_kl:0.03", "-n", "2048"]
    command = [sys.executable, "-W", "ignore", "-m", "rl_zoo3.train", *options, "--eval-freq", "-1", "--verbose", "0"]
    subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    model = PPOKLPen.load(tmp_path / "logs" / "ppo_klpen" / "Reacher-v4_1" / "Reacher-v4.zip")
    assert (model.n_steps, model.batch_size, model.n_epochs, model.target_kl) == (2048, 64, 10, 0.03)
    assert (model.max_grad_norm, model.normalize_advantage, model.vf_coef) == (None, "batch", 1.0)
    assert (model.action_space.high > 1e38).all()
