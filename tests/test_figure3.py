"""Figure 3: its contestants against numbers worked out by hand, and its tables and drawing on made-up results."""

import sys

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch as th
from compiled_support import needs_new_torch
from gymnasium import spaces
from paper_support import Inspect, make_model, statistics_of_ppo1
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from support import InEachRollout, space_env
from torch.nn.utils import parameters_to_vector

from benchmarks.contestants.a2c_trust_region import A2CTrustRegion
from benchmarks.contestants.cem import CEM, refit
from benchmarks.contestants.quick_rollouts import A2C, TRPO
from benchmarks.contestants.vanilla_policy_gradient import VanillaPolicyGradient
from benchmarks.paper import figure3, figure3_report, training
from benchmarks.paper.__main__ import main
from benchmarks.paper.cells import format_without_largest
from benchmarks.paper.documents import FIGURE_3_PAGE
from benchmarks.paper.experiments import PILOTS, STAGES, TASKS, Run
from benchmarks.paper.results import DEFAULT, Results
from benchmarks.paper.scores import CONSTANTS, MissingRunsError, Scores, Study
from benchmarks.paper.training import Result
from sb3_ppo_variants import NonFiniteEnvironmentError, NonFiniteUpdateError


def test_settings_are_those_of_the_plan():
    """Those of docs/figure3.md."""
    trpo = {"n_steps": 1024, "target_kl": 0.01, "cg_max_steps": 10, "cg_damping": 0.1, "gamma": 0.99, "gae_lambda": 0.98}
    trpo |= {"n_critic_updates": 5, "learning_rate": 0.001, "batch_size": 64}
    # Those of trpo_mpi.py, which the page does not name
    trpo |= {"line_search_shrinking_factor": 0.5, "line_search_max_iter": 10}
    a2c = {"n_steps": 5, "gamma": 0.99, "ent_coef": 0.0, "vf_coef": 0.5, "max_grad_norm": 0.5, "learning_rate": 0.002}
    assert figure3.CONTESTANTS["trpo"].kwargs == trpo
    assert figure3.CONTESTANTS["a2c"].kwargs == a2c
    assert figure3.CONTESTANTS["a2c_trust_region"].kwargs == a2c | {"delta": 1.0, "alpha": 0.99}
    assert [one.n_envs for one in figure3.CONTESTANTS.values()] == [1, 8, 8, 1, 1]
    vanilla = figure3.CONTESTANTS["vanilla"].kwargs
    assert [vanilla[name] for name in ("n_steps", "gamma", "gae_lambda")] == [2048, 0.99, 0.95]
    step_size = vanilla["learning_rate"]
    assert (step_size.kl_target, step_size.initial, step_size.factor, step_size.band) == (0.002, 0.001, 1.5, 2.0)
    cem = figure3.CONTESTANTS["cem"].kwargs
    assert [cem[name] for name in ("population_size", "elite_fraction", "initial_std")] == [50, 0.2, 0.1]
    # A tenth of that at the beginning, none from the middle on
    assert [cem["extra_std"](left) for left in (1.0, 0.75, 0.5, 0.0)] == pytest.approx([0.01, 0.005, 0, 0])
    assert cem["policy_kwargs"]["net_arch"]["pi"] == [64, 64]


class Target(gym.Env):
    """Episodes of one step, which cost the squared distance of the action from 0.3."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Box(-100, 100, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), -float((action[0] - 0.3) ** 2), True, False, {}


LINEAR = {"net_arch": []}


def test_cem_refits_to_the_best():
    candidates = th.tensor([[1.0, 10.0], [3.0, 20.0], [5.0, 60.0]])
    mean, std = refit(candidates, [2.0, 9.0, 4.0], n_elites=2)
    # The second and the third: (3 + 5) / 2 and (20 + 60) / 2, each of them 1 and 20 away
    assert mean.tolist() == [4, 40]
    assert std.tolist() == [1, 20]


def test_cem_learns_and_plays_each_candidate_once():
    actions = []
    model = CEM("MlpPolicy", Target(), population_size=20, seed=0, policy_kwargs=LINEAR)

    def note(locals_, _):
        actions.append(locals_["actions"].item())
        assert actions[-1] == model.predict(model._last_obs)[0]
        return True

    model.learn(400, note)
    assert (model.num_timesteps, model._n_updates) == (400, 20)
    assert len(set(actions[:20])) == 20
    assert model.predict(np.ones(1, np.float32))[0] == pytest.approx(0.3, abs=0.02)
    assert model.std.max() < 0.1


def test_variances_of_cem_and_its_noise_add():
    model = CEM("MlpPolicy", Target(), population_size=200, extra_std=lambda left: left, policy_kwargs=LINEAR, seed=0)
    model.learn(0)
    drawn = []
    model._play_episode = lambda callback: drawn.append(parameters_to_vector(model._parameters()).detach().clone()) or 0.0
    # 0.75^2 + 1 = 1.25^2
    for left, expected in ((1.0, 1.25), (0.0, 0.75)):
        drawn.clear()
        model._current_progress_remaining = left
        model.std = th.full((2,), 0.75)
        model._run_generation(model._init_callback(None))
        # Standard error of the deviation of 400 numbers: 4%
        assert th.stack(drawn).std(dim=0).mean() == pytest.approx(expected, rel=0.12)


def test_cem_keeps_its_mean_when_it_is_stopped():
    model = CEM("MlpPolicy", Target(), seed=0, policy_kwargs=LINEAR)
    before = parameters_to_vector(model._parameters()).detach().clone()
    model.learn(100, lambda *_: model.num_timesteps < 7)
    assert (model.num_timesteps, model._n_updates) == (7, 0)
    th.testing.assert_close(parameters_to_vector(model._parameters()), before, rtol=0, atol=0)


def trained(cls, timesteps=400, **kwargs):
    model = cls("MlpPolicy", make_vec_env("Pendulum-v1", 4, seed=0), seed=0, device="cpu", ent_coef=0.01, **kwargs)
    return model.learn(timesteps)


@pytest.mark.parametrize(
    ("ours", "original", "kwargs"),
    [(A2C, stable_baselines3.A2C, {}), (TRPO, sb3_contrib.TRPO, {"n_steps": 64, "n_critic_updates": 2})],
)
def test_quick_rollouts_change_nothing(ours, original, kwargs):
    models = []
    for cls in (ours, original):
        env = VecNormalize(make_vec_env("Pendulum-v1", 2, seed=0))
        models.append(cls("MlpPolicy", env, seed=0, device="cpu", **kwargs).learn(512))
    quick, expected = ({**model.policy.state_dict(), "_last_obs": th.as_tensor(model._last_obs)} for model in models)
    assert models[0]._n_updates > 3
    assert quick.keys() == expected.keys()
    assert [name for name in expected if not th.equal(quick[name], expected[name])] == []


def test_a2c_with_an_infinite_trust_region_is_a2c():
    expected, actual = trained(A2C), trained(A2CTrustRegion, delta=np.inf)
    for ours, theirs in zip(actual.policy.parameters(), expected.policy.parameters(), strict=True):
        th.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    # After 20 updates, a narrow one makes a difference
    narrow = trained(A2CTrustRegion, delta=1e-3).policy.action_net.weight
    assert (narrow - expected.policy.action_net.weight).abs().max() > 1e-3


def test_trust_region_of_a2c_by_hand():
    n_active = 0
    sgd = {"net_arch": [], "optimizer_class": th.optim.SGD, "optimizer_kwargs": {}}
    kwargs = {"n_steps": 1, "vf_coef": 0.0, "max_grad_norm": 1e9, "learning_rate": 1e-3, "device": "cpu", "policy_kwargs": sgd}
    for seed in range(8):
        model = A2CTrustRegion("MlpPolicy", make_vec_env(Target, 1), delta=0.01, seed=seed, **kwargs)
        policy = model.policy
        with th.no_grad():
            model.average_policy.action_net.bias += 2
            # The observation is 1
            bias, value = policy.action_net.bias.item(), policy.predict_values(th.ones(1, 1)).item()
            mean = policy.action_net.weight.item() + bias
        model.learn(1)
        distance = model.rollout_buffer.actions.item() - mean
        advantage = -((distance + mean - 0.3) ** 2) - value
        # By mean and log std, the deviation being 1: of log pi (x, x^2 - 1), of KL[average, pi] (-2, 1 - (1 + 2^2))
        gradient, of_kl = advantage * np.array([distance, distance**2 - 1]), np.array([-2.0, -4.0])
        excess = (of_kl @ gradient - 0.01) / 20
        step = 1e-3 * (gradient - max(excess, 0) * of_kl)
        assert policy.action_net.bias.item() - bias == pytest.approx(step[0], rel=2e-3, abs=2e-7)
        assert policy.log_std.item() == pytest.approx(step[1], rel=2e-3, abs=2e-7)
        n_active += excess > 0
    assert 0 < n_active < 8


def test_average_policy_follows_the_policy():
    model = trained(A2CTrustRegion, timesteps=0, alpha=0.75)
    before = model.policy.action_net.weight.detach().clone()
    model.learn(20)
    after = model.policy.action_net.weight
    assert not th.equal(after, before)
    th.testing.assert_close(model.average_policy.action_net.weight, 0.75 * before + 0.25 * after)


def test_vanilla_policy_gradient_makes_one_step_along_the_gradient():
    sgd = {"net_arch": [], "optimizer_class": th.optim.SGD, "optimizer_kwargs": {}}
    value_function = {"n_value_epochs": 1, "value_batch_size": 64}
    model = VanillaPolicyGradient(
        "MlpPolicy", Target(), n_steps=64, seed=0, policy_kwargs=sgd, compile=False, **value_function
    )
    bias, log_std = (parameter.item() for parameter in (model.policy.action_net.bias, model.policy.log_std))
    weight, value = model.policy.action_net.weight.item(), model.policy.value_net.bias.item()
    model.learn(64)
    buffer = model.rollout_buffer
    actions, advantages = (array.flatten().astype(np.float64) for array in (buffer.actions, buffer.advantages))
    advantages = (advantages - advantages.mean()) / advantages.std()
    # The observation is 1, and the deviation before the update was 1: by the bias, log pi has the gradient a - mean
    distance = actions - (weight + bias)
    assert log_std == 0
    assert model.policy.action_net.bias.item() - bias == pytest.approx(1e-3 * np.mean(advantages * distance), rel=1e-3)
    # and by log std (a - mean)^2 - 1
    assert model.policy.log_std.item() == pytest.approx(1e-3 * np.mean(advantages * (distance**2 - 1)), rel=1e-3)
    # So small a step is below half the target of the KL
    assert model.adapted_learning_rate == pytest.approx(1.5e-3)
    # Adam's first step is its step size, here down to the returns, which are negative; the policy's step has no part in it
    assert model.policy.value_net.bias.item() == pytest.approx(value - 1e-3, abs=1e-6)


@needs_new_torch
def test_compiled_rollouts_see_the_fitted_value_function(interpreted):
    def compare(model):
        with th.no_grad():
            expected = model.policy.predict_values(th.as_tensor(model.rollout_buffer.observations[:, 0])).flatten()
        np.testing.assert_allclose(model.rollout_buffer.values[:, 0], expected, rtol=1e-4, atol=1e-5)
        means.append(expected.mean().item())

    means, model = [], VanillaPolicyGradient("MlpPolicy", "Pendulum-v1", n_steps=256, seed=0, device="cpu", compile=True)
    model.learn(512, InEachRollout(compare, at_end=True))
    assert interpreted
    # The returns are negative
    assert means[1] < means[0] - 0.5


@pytest.mark.parametrize(
    ("cls", "kwargs"),
    [
        (CEM, {"population_size": 4, "elite_fraction": 0.5}),
        (A2CTrustRegion, {"delta": 0.5}),
        (VanillaPolicyGradient, {"n_steps": 64, "compile": False}),
    ],
)
def test_contestants_are_saved_and_loaded(cls, kwargs, tmp_path):
    model = cls("MlpPolicy", "CartPole-v1", seed=0, device="cpu", **kwargs).learn(300)
    model.save(tmp_path / "model")
    loaded = cls.load(tmp_path / "model", env=model.get_env(), device="cpu")
    observations = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    np.testing.assert_array_equal(*(one.predict(observations, deterministic=True)[0] for one in (loaded, model)))
    for name in ("std", "average_policy", "value_optimizer"):
        if hasattr(model, name):
            ours, theirs = (getattr(one, name) for one in (loaded, model))
            state = (ours, theirs) if name == "std" else (ours.state_dict(), theirs.state_dict())
            th.testing.assert_close(*state, rtol=0, atol=0)
    n_updates = loaded._n_updates
    loaded.learn(300, reset_num_timesteps=False)
    assert loaded._n_updates > n_updates


def test_actions_of_the_trust_region():
    with pytest.raises(ValueError, match=r"env must have actions that are Box or Discrete, but they are MultiDiscrete"):
        A2CTrustRegion("MlpPolicy", space_env("box", "multidiscrete")())


def test_the_plan():
    # 5 contestants, 7 tasks, 10 seeds; 4 candidates of each of 4, 2 tasks, 2 seeds
    assert len(set(STAGES["figure3"])) == 350
    assert len(set(PILOTS["figure3_pilot"])) == 64
    # 1 more, and its 4 candidates
    assert len(set(STAGES["figure3_later"])) == 70
    assert len(set(PILOTS["figure3_later_pilot"])) == 16
    assert not {(run.env, run.seed) for run in PILOTS["figure3_pilot"]} & {(run.env, run.seed) for run in STAGES["figure3"]}
    assert not set(figure3.PILOT_TASKS) & set(TASKS)
    assert max(figure3.SEEDS) < min(figure3.PILOT_SEEDS)


def test_contestants_start_with_the_same_policy():
    for name in figure3.CONTESTANTS:
        model = make_model(name, "Reacher-v4")
        assert model.n_envs == (8 if name.startswith("a2c") else 1)
        np.testing.assert_allclose(model.policy.action_net.weight.detach().norm(dim=1), 0.01, rtol=1e-5)
        assert not model.policy.log_std.any()
    model = make_model("a2c_trust_region", "Reacher-v4")
    th.testing.assert_close(model.average_policy.state_dict(), model.policy.state_dict(), rtol=0, atol=0)


def test_rmsprop_of_openai_baselines():
    model = make_model("a2c_baselines_0.002", "Reacher-v4")
    parameter = model.policy.action_net.bias
    before = parameter.detach().clone()
    for other in model.policy.parameters():
        other.grad = th.full_like(other, 0.1)
    model.policy.optimizer.step()
    # The mean square is 0.99 * 1 + 0.01 * 0.1^2 = 0.9901; 0.002 * 0.1 / sqrt(0.9901 + 0.00001) = 2.00997e-4
    np.testing.assert_allclose((before - parameter).detach(), 2.00997e-4, rtol=1e-4)
    assert model.lr_schedule(0.5) == pytest.approx(0.001)


@pytest.mark.parametrize("setting", ["a2c", "cem"])
def test_observation_filter_of_several_environments_and_without_a_buffer(setting):
    model, inspect = make_model(setting, "Reacher-v4"), Inspect()
    model.population_size = 3
    # 80 observations, or two generations of three episodes of 50 steps
    n_timesteps = 80 if setting == "a2c" else 300
    model.learn(n_timesteps, callback=[training.ObservationFilter(model.env), inspect])
    assert len(np.concatenate(inspect.raw)) == n_timesteps
    mean, std = statistics_of_ppo1(inspect.raw)
    np.testing.assert_allclose(model.env.obs_rms.mean, mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(np.sqrt(model.env.obs_rms.var), std, rtol=1e-6)
    if setting == "a2c":
        # The second of two rollouts of 5 steps and 8 environments, by all observations so far
        second = np.clip((np.array(inspect.raw[5:]) - mean) / std, -5, 5)
        np.testing.assert_allclose(inspect.rollouts[1].observations, second, rtol=1e-4, atol=1e-5)
    last = np.clip((model.env.get_original_obs() - mean) / std, -5, 5)
    np.testing.assert_allclose(model._last_obs, last, rtol=1e-4, atol=1e-5)


def test_numbers_that_are_not_finite_end_a_run():
    model = make_model("a2c", "Reacher-v4")
    with th.no_grad():
        model.policy.value_net.bias.fill_(np.nan)
    with pytest.raises(NonFiniteUpdateError):
        model.learn(40, callback=training.CheckFinite())
    model = make_model("a2c", "Reacher-v4")
    with th.no_grad():
        # Actions of which the square, which Reacher charges for, is infinite
        model.policy.action_net.bias.fill_(1e30)
    with pytest.raises(NonFiniteEnvironmentError), pytest.warns(Warning, match="overflow|inf value"):
        model.learn(40, callback=training.CheckFinite())


def test_a_contestants_run(tmp_path):
    result = training.train(Run("paper", "a2c", "InvertedPendulum-v4", 1), 400, "")
    assert (result.row["steps"], result.row["diverged"]) == (400, False)
    assert result.row["score"] == pytest.approx(result.curves["returns"][-100:].mean(), abs=1e-3)
    # An episode pays 1 a step
    np.testing.assert_array_equal(result.curves["returns"], result.curves["lengths"])


# Of the way from 0 to 1, in each task; the seeds add -0.01 to 0.01
MADE_UP = {"clip_0.2": 0.8, "trpo": 0.8, "a2c": 0.5, "a2c_trust_region": 0.6, "vanilla": 0.3, "cem": 0.1, "a2c_baselines": 0.7}


def save(results, run, score, diverged=False):
    row = {**vars(run), "timesteps": 1000, "steps": 1000, "diverged": diverged, "score": float(score)}
    curves = {"lengths": np.full(10, 100), "returns": np.linspace(0, score, 10)}
    results.save(run, Result(row, curves))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """All runs of Figure 3 but the last one, which comes to be missing."""
    results = Results(tmp_path_factory.mktemp("figure3"))
    results.curves.mkdir()
    study = Study(results, CONSTANTS)
    for run in dict.fromkeys([*figure3_report.RUNS, *figure3_report.LATER_RUNS]):
        of_env = study.constants[run.env]
        part = MADE_UP[run.setting] + (run.seed - 4.5) / 450
        save(results, run, of_env["uniform"] + part * (of_env["best_run"] - of_env["uniform"]))
    return study


def cells(markdown):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()[2:]]


def test_comparison(study):
    ppo, trpo, a2c, *others = cells(figure3_report.TABLES["figure3"](study))
    assert ppo[:6] == ["PPO", "0.80 (0.80 to 0.80)", "", "", "", ""]
    # TRPO has the same scores: of each ten by ten pairs 45 are won and 10 tied. Both win all of the seven tasks
    assert trpo[2:5] == ["+0.00 (-0.00 to 0.00)", "1.00", "+0.00 (-0.00 to 0.00) without HalfCheetah"]
    assert trpo[5].startswith("0.50 (")
    assert trpo[6] == "7"
    assert ppo[6] == "7"
    assert a2c[1] == "0.50 (0.50 to 0.50)"
    # The smallest p of 29,999 permutations; four of these times 5, 4, 3, 2, and no smaller than the first: 5 / 30,000
    assert a2c[2:4] == ["+0.30 (0.30 to 0.30)", "< 0.001"]
    assert a2c[5:7] == ["1.00 (1.00 to 1.00)", "0"]
    assert [other[0] for other in others] == ["A2C with trust region", "Vanilla policy gradient, adaptive step size", "CEM"]


def test_difference_without_the_task_that_contributes_most():
    scores, others = np.full((7, 2), 0.5), np.full((7, 2), 0.4)
    assert format_without_largest(scores + np.eye(7)[:, :1], others) == "+0.10 (0.10 to 0.10) without HalfCheetah"
    # Swimmer alone makes the mean difference negative, and is the sixth of the tasks
    others[5] = 3.4
    assert format_without_largest(scores, others) == "+0.10 (0.10 to 0.10) without Swimmer"


def test_a2c_that_was_added_later(study):
    rows = cells(figure3_report.TABLES["figure3_later"](study))
    a2c = ["0.50 (0.50 to 0.50)", "+0.30 (0.30 to 0.30)", "1.00 (1.00 to 1.00)"]
    as_in_baselines = ["0.70 (0.70 to 0.70)", "+0.10 (0.10 to 0.10)", "1.00 (1.00 to 1.00)"]
    assert rows == [["A2C", *a2c], ["A2C as in openai/baselines", *as_in_baselines]]


def test_distance(study):
    by_name = {row[0]: row for row in cells(figure3_report.TABLES["figure3_distance"](study))}
    assert list(by_name) == ["PPO", "A2C", "A2C with trust region", "TRPO"]
    # A2C: (1000 + 288.63) / 3911.69 = 0.3294, (900 - 19.41) / 2889.22 = 0.3048, 0.8106, 1, (-24 + 43.30) / 38.19 = 0.5053,
    # (31 - 0.42) / 111.34 = 0.2747, (850 - 3.02) / 3648.89 = 0.2321: mean 0.4938; from 0.5: 0.1706, 0.1952, 0.3106, 0.5,
    # 0.0053, 0.2253, 0.2679: mean 0.2393, of which Reacher is within 0.49 to 0.51
    assert by_name["A2C"][1:6] == ["0.49", "0.50", "0.24", "1 of 7", "InvertedPendulum (-0.50)"]
    # In the readings, PPO wins Hopper, Walker2d, HalfCheetah and Reacher, A2C with trust region the double pendulum, TRPO
    # Swimmer, and all four the pendulum; here, PPO and TRPO tie everywhere
    assert [row[6:] for row in by_name.values()] == [["5", "7"], ["1", "0"], ["2", "0"], ["2", "7"]]


def test_by_task(study):
    rows = cells(figure3_report.TABLES["figure3_by_task"](study))
    # 0.8 of the way from 5.97 to 1000; deviation of ten equal steps of 994 / 450: 3.03 times one
    assert rows[0][4] == "801 ± 6.7"
    assert rows[1] == ["PPO: the paper's plot", "1800", "2330", "8000", "1000", "-7.0", "108", "3460"]


def test_tasks_won_by_ties():
    returns = {"a": np.array([1.0, 5.0, 2.0]), "b": np.array([1.0, 4.0, 3.0]), "c": np.array([0.0, 4.0, 2.0])}
    assert figure3_report.tasks_won_among(returns) == {"a": 2, "b": 2, "c": 0}


def test_pilot_chooses_by_mean_rank(tmp_path):
    # Ranks 1, 3 and 2.5, 2.5; and 1, 3, 2 and 3, 1, 2
    np.testing.assert_array_equal(figure3_report.mean_ranks(np.array([[9.0, 2], [1, 2], [5, 7]])), [1.75, 2.75, 1.5])
    results = Results(tmp_path)
    results.curves.mkdir()
    for run in PILOTS["figure3_pilot"]:
        candidates = next(list(candidates) for candidates in figure3.CANDIDATES.values() if run.setting in candidates)
        # The third is best, but on Ant with the first seed the first is, by far
        first = (run.env, run.seed) == (figure3.PILOT_TASKS[0], figure3.PILOT_SEEDS[0])
        score = {2: 5.0, 0: 1000.0 if first else 1.0, 3: 2000.0}.get(candidates.index(run.setting), 0.0)
        # The fourth always ends early
        save(results, run, score, diverged=score == 2000)
    table, chosen = figure3_report.pilot(Study(results, CONSTANTS))
    assert list(chosen.values()) == [list(candidates)[2] for candidates in figure3.CANDIDATES.values()]
    assert table.count("**") == 8


def test_what_is_run_is_what_the_pilot_chose():
    study = Study(Results(DEFAULT.parent / "figure3_pilot"), CONSTANTS)
    text = FIGURE_3_PAGE.read_text(encoding="utf-8")
    table, chosen = figure3_report.pilot(study)
    assert chosen == figure3.CHOSEN
    assert table in text
    table, chosen = figure3_report.pilot(study, "figure3_later_pilot", figure3.LATER_CANDIDATES)
    assert chosen == figure3.LATER_CHOSEN
    assert table in text


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["paper", *map(str, arguments)])
    return main()


def test_figure_is_drawn(study, tmp_path, monkeypatch):
    results = study.results.directory
    assert call(monkeypatch, "figure3", "--results", results, "--output", tmp_path) == 0
    drawn = (tmp_path / "figure3.svg").read_text(encoding="utf-8")
    from benchmarks.paper.figures import of_runs

    scores = figure3_report.scores_of(study)
    assert of_runs(scores) in drawn
    assert of_runs(Scores({run: row for run, row in scores.rows.items() if run.seed}, study.constants)) not in drawn


def test_missing_runs_are_named(study, monkeypatch, capsys):
    last = study.results.curves / f"{figure3_report.RUNS[-1].name}.npz"
    last.unlink()
    with pytest.raises(MissingRunsError):
        figure3_report.scores_of(study)
    for command in (["tables", "figure3"], ["figure3", "--output", study.results.directory]):
        assert call(monkeypatch, *command, "--results", study.results.directory) == 2
        assert "1 of 420 runs are missing: paper-cem-Walker2d-v4-9\n" in capsys.readouterr().err
