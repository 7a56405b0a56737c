"""The tables and figures of the paper's studies, and the committed results they are made from."""

import csv
import re
from types import SimpleNamespace

import numpy as np

from benchmarks.paper import cells, documents, figure3_report, figures, tables
from benchmarks.paper.documents import FIGURES
from benchmarks.paper.experiments import SEEDS, SETTINGS, STAGES, TASKS, Run
from benchmarks.paper.results import DEFAULT, Results
from benchmarks.paper.scores import CONSTANTS, Scores, Study, freeze


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
        curves = [results.load(Run("paper", setting, env, seed)).curves for setting in SETTINGS]
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
    scores = made_up_scores({"clip_0.2": [79, 80, 81], "adaptive_kl_0.01": [59, 60, 61], "fixed_kl_3": [71, 72, 73]})
    study = SimpleNamespace(table_1=scores, ten_seeds=scores)
    # 1.761 (t, 14 degrees of freedom, one side) sqrt(2 * 7 / 3) 0.01 / 7 = 0.0054: at most 0.0254. With 90 as 1:
    # 0.8 / 0.9 - 0.82 + 0.0054 / 0.9 = 0.0749
    cells = "Clipping, epsilon = 0.2, minus the paper | 3 | -0.02 (-0.03 to -0.01) | 0.03 | 0.08"
    assert f"| {cells} |" in tables._equivalences(study)
    # 1.701 (t, 28 degrees of freedom, one side) sqrt(2 / 21) 0.01 = 0.0052: at most 0.1252, and 0.1392 with 90 as 1
    cells = "Adaptive KL, d_targ = 0.01, minus Fixed KL, beta = 3 | 10 | -0.12 (-0.13 to -0.11) | 0.13 | 0.14"
    assert f"| {cells} |" in tables._equivalences(study)
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
    # Of three runs with the KL 0.25, 0.5 and 2 times 1 + the seed: 0.25, 0.5, 0.5, 0.75, 1, 1.5, 2, 4, 6; ten times that
    scale = {"paper": 1, "sb3": 10}
    results = SimpleNamespace(
        load=lambda run: SimpleNamespace(curves={"kl": scale[run.variant] * (run.seed + 1) * np.array([0.25, 0.5, 2])})
    )
    study = SimpleNamespace(details=Scores(rows, scores.constants), results=results)
    # 80 + 200 of 100 + 200 in one of seven tasks, 0.13; bounded, 60 + 51 of 100 + 51, 0.105
    paper, sb3 = tables._details(study).splitlines()[2:]
    assert paper.endswith("| 79.0, 80.0, 81.0 | 0 | +0.13 | 1 |")
    assert sb3.endswith("| 60.0, 60.0, 60.0 | 0 | +0.11 | 10 |")


def test_ends_of_intervals_keep_the_sign_of_a_rounded_zero():
    assert cells.interval(0.0396, 0.0442, sign="+") == "+0.04 (-0.00 to 0.08)"
    assert cells.interval(-0.002, 0.001) == "0.00 (-0.00 to -0.00)"


def test_running_scores(monkeypatch):
    monkeypatch.setattr(figures, "LAST_EPISODES", 2)
    run = Run("paper", "none", "Reacher-v4", 0)
    curves = {"lengths": np.array([10, 10, 10]), "returns": np.array([1.0, 2.0, 6.0])}
    results = SimpleNamespace(load=lambda _: SimpleNamespace(curves=curves))
    others = Run("sb3", "none", "Reacher-v4", 0), Run("paper", "clip_0.2", "Reacher-v4", 0)
    scores = Scores({one: {"timesteps": 30} for one in (run, *others)}, {})
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
        table_1=Scores({run: {"timesteps": 1} for run in results}, {}),
        results=SimpleNamespace(load=lambda run: SimpleNamespace(curves=results[run])),
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
