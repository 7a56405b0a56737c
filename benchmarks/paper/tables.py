"""The tables of docs/paper.md, in Markdown."""

import csv
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.paper import statistics
from benchmarks.paper.claims import CHEETAH, SEED, claims, estimate, format_p, format_score, p_values
from benchmarks.paper.experiments import REFERENCES, SETTINGS, VARIANTS, Run
from benchmarks.paper.results import Results
from benchmarks.paper.scores import BEST_CHOICES, DATA, RANDOM_CHOICES, MissingRunsError, Scores, paper_scores


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """
    A table in Markdown.

    :param header: names of the columns
    :param rows: the cells
    :return: the table
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_return(number: float) -> str:
    """
    A return in words.

    :param number: the return
    :return: with one decimal if it is small, with three digits if it is large
    """
    if abs(number) < 100:
        return f"{number:.1f}"
    return f"{number:.0f}" if abs(number) < 1e5 else f"{number:.3g}"


def p_cell(pair: tuple[np.ndarray, np.ndarray]) -> str:
    """
    Whether two settings differ, in a column that is headed p.

    :param pair: scores of both
    :return: the p-value
    """
    return format_p(p_values([pair])[0]).removeprefix("p = ").removeprefix("p ")


def counts(column: str, scores: Scores) -> str:
    """
    How often each value of a column of the rows occurs.

    :param column: its name
    :param scores: the scores
    :return: Markdown
    """
    values = Counter(row[column] for row in scores.rows.values())
    return table([column, "runs"], [[value, str(count)] for value, count in values.most_common()])


def table_1(scores: Scores) -> str:
    """
    Table 1 beside the paper's.

    :param scores: the scores
    :return: Markdown
    """
    paper = paper_scores()
    rows = []
    for setting in scores.settings():
        normalized = scores.normalized(setting)
        rows.append(
            [
                SETTINGS[setting].label,
                f"{paper[setting]:.2f}" if setting in paper else "not given",
                estimate(statistics.mean, normalized),
                estimate(statistics.interquartile_mean, normalized),
                estimate(statistics.optimality_gap, normalized),
                str(normalized.size),
            ]
        )
    return table(["setting", "paper", "here: mean", "interquartile mean", "optimality gap", "runs"], rows)


def constants_table(scores: Scores) -> str:
    """
    The constants of the normalisation.

    :param scores: the scores
    :return: Markdown
    """
    rows = []
    for env in scores.tasks:
        constants = scores.constants[env]
        best = [f"{format_return(constants[name])} ({SETTINGS[constants[f'{name}_of']].label})" for name in BEST_CHOICES]
        rows.append([env, *(format_return(constants[name]) for name in RANDOM_CHOICES), *best])
    header = [
        "task",
        *(f"0: {label}" for label in RANDOM_CHOICES.values()),
        *(f"1: {label}" for label in BEST_CHOICES.values()),
    ]
    return table(header, rows)


def claims_table(scores: Scores) -> str:
    """
    What the paper says of Table 1, and what is found here.

    :param scores: the scores, of all seeds
    :return: Markdown
    """
    readings = [claims(reading) for reading in scores.readings()]
    rows = []
    for same_claim in zip(*readings, strict=True):
        first = same_claim[0]
        n_alike = sum(claim.verdict == first.verdict for claim in same_claim)
        rows.append([first.paper, first.here, first.verdict, f"{n_alike} of {len(readings)} readings"])
    return table(["in the paper", "here", "verdict", "same verdict under"], rows)


def rank_correlation(scores: Scores) -> str:
    """
    The rank correlation of the paper's Table 1 and this one.

    :param scores: the scores
    :return: the correlation and its p-value, empty if there are too few settings
    """
    printed = paper_scores()
    settings = [setting for setting in scores.settings() if setting in printed]
    if len(settings) < 3:
        return ""
    ours = np.array([statistics.mean(scores.normalized(setting)) for setting in settings])
    papers = np.array([printed[setting] for setting in settings])
    p = statistics.chance_of_correlation(ours, papers, np.random.default_rng(SEED))
    return f"{statistics.rank_correlation(ours, papers):.2f} ({format_p(p)})"


def n_below_start(scores: Scores, setting: str, env: str, variant: str = "paper") -> int:
    """
    How many runs end with a score below that of the policy before training.

    :param scores: the scores
    :param setting: name of the setting
    :param env: the task
    :param variant: name of the variant
    :return: that number
    """
    task = scores.tasks.index(env)
    start = scores.constant("untrained")[task]
    if VARIANTS[variant].bounded_actions:
        returns = scores.returns("untrained", "bounded_actions")[task]
        if not len(returns):
            raise MissingRunsError("The policy before training has not been run with bounded actions: stage details_sb3")
        start = returns.mean()
    return int((scores.returns(setting, variant)[task] < start).sum())


def returns_by_seed(scores: Scores, setting: str, env: str, variant: str = "paper") -> str:
    """
    The scores of the runs of a setting in a task, in words.

    :param scores: the scores
    :param setting: name of the setting
    :param env: the task
    :param variant: name of the variant
    :return: the words
    """
    return ", ".join(format_return(score) for score in scores.returns(setting, variant)[scores.tasks.index(env)])


def comparisons(scores: Scores, to: str) -> str:
    """
    A setting against all others.

    :param scores: the scores
    :param to: name of the setting
    :return: Markdown
    """
    paper = paper_scores()
    rows = []
    for setting in scores.settings():
        if setting == to:
            continue
        pair = scores.normalized(to), scores.normalized(setting)
        known = setting in paper
        rows.append(
            [
                SETTINGS[setting].label,
                f"{paper[to] - paper[setting]:+.2f}" if known else "not given",
                estimate(statistics.difference, *pair, sign="+"),
                estimate(statistics.probability_of_improvement, *pair, n_resamples=2000),
                p_cell(pair),
                f"{statistics.power(paper[to] - paper[setting], *pair):.2f}" if known else "",
            ]
        )
    header = ["against", "paper: difference", "here: difference", "probability of improvement", "p", "power"]
    return table(header, rows)


def no_clipping(scores: Scores) -> str:
    """
    "No clipping or penalty" task by task.

    :param scores: the scores
    :return: Markdown, empty if it has not been run
    """
    if "none" not in scores.settings():
        return ""
    readings = [Scores(scores.rows, scores.constants, random).normalized("none").mean(axis=1) for random in RANDOM_CHOICES]
    rows = [
        [
            env,
            returns_by_seed(scores, "none", env),
            *(format_score(means[task]) for means in readings),
            str(n_below_start(scores, "none", env)),
        ]
        for task, env in enumerate(scores.tasks)
    ]
    header = ["task", "returns by seed", *(f"score if 0 is {label}" for label in RANDOM_CHOICES.values())]
    return table([*header, "runs below the policy before training"], rows)


def details(everything: Scores, runs: Sequence[Run]) -> dict[str, str]:
    """
    What other conventions make of the scores.

    :param everything: the scores
    :param runs: the runs with other details
    :return: Markdown of two tables, empty if there are no such runs
    """
    if not runs:
        return {"details": "", "details_by_task": ""}
    seeds = {run.seed for run in runs}
    scores = everything.only([run for run in everything.rows if run.seed in seeds])
    keys = {(run.setting, run.variant) for run in scores.rows}
    rows, by_task = [], []
    for setting in SETTINGS:
        if setting not in {run.setting for run in runs}:
            continue
        for variant in VARIANTS:
            if (setting, variant) not in keys:
                continue
            own, papers = scores.normalized(setting, variant), scores.normalized(setting)
            cells = ["", ""]
            if variant != "paper":
                cells = [estimate(statistics.difference, own, papers, sign="+"), p_cell((own, papers))]
            label = f"{SETTINGS[setting].label}; {VARIANTS[variant].label}"
            rows.append([label, estimate(statistics.mean, own), *cells, *cheetah_cells(scores, setting, variant)])
            by_task.append([label, *means_by_task(scores, setting, variant)])
    header = ["", "score", "difference", "p", "HalfCheetah: returns by seed", "of them below the policy before training"]
    return {
        "details": table(header, rows),
        "details_by_task": table(["", *short(scores.tasks)], by_task),
    }


def cheetah_cells(scores: Scores, setting: str, variant: str) -> list[str]:
    """
    What became of HalfCheetah.

    :param scores: the scores
    :param setting: name of the setting
    :param variant: name of the variant
    :return: cells of a table
    """
    if CHEETAH not in scores.tasks:
        return ["", ""]
    return [returns_by_seed(scores, setting, CHEETAH, variant), str(n_below_start(scores, setting, CHEETAH, variant))]


def means_by_task(scores: Scores, setting: str, variant: str = "paper") -> list[str]:
    """
    The mean return and the standard deviation over seeds in each task.

    :param scores: the scores
    :param setting: name of the setting
    :param variant: name of the variant
    :return: cells of a table
    """
    return [f"{format_return(runs.mean())} ± {format_return(runs.std(ddof=1))}" for runs in scores.returns(setting, variant)]


def by_task(scores: Scores) -> str:
    """
    Scores by task.

    :param scores: the scores
    :return: Markdown
    """
    rows = [[SETTINGS[setting].label, *means_by_task(scores, setting)] for setting in scores.settings()]
    rows += [[reference.label, *means_by_task(scores, name)] for name, reference in REFERENCES.items()]
    return table(["", *short(scores.tasks)], rows)


def short(tasks: Sequence[str]) -> list[str]:
    """
    Ids of tasks without the version, which is that of all.

    :param tasks: the ids
    :return: the names
    """
    return [env.removesuffix("-v4") for env in tasks]


def adaptation(results: Results, scores: Scores) -> str:
    """
    How well the adaptive penalty meets its target.

    :param results: the results, with the KL of each update
    :param scores: the scores
    :return: Markdown, empty if there are no such settings
    """
    rows = []
    for setting in scores.settings():
        if not setting.startswith("adaptive"):
            continue
        target = SETTINGS[setting].kwargs["target_kl"]
        cells = []
        for env in scores.tasks:
            runs = [run for run in scores.rows if (run.variant, run.setting, run.env) == ("paper", setting, env)]
            kl = np.concatenate([results.load(run).curves["kl"] for run in runs]) / target
            below, above = np.mean(kl < 1 / 1.5), np.mean(kl > 1.5)
            cells.append(f"{below:.0%} / {1 - below - above:.0%} / {above:.0%}; {kl.max():.1f}")
        rows.append([SETTINGS[setting].label, *cells])
    return table(["", *short(scores.tasks)], rows) if rows else ""


def sensitivity(scores: Scores) -> str:
    """
    Table 1 under each reading of what the paper leaves open.

    :param scores: the scores
    :return: Markdown
    """
    paper, readings = paper_scores(), scores.readings()
    rows = [
        [
            SETTINGS[setting].label,
            f"{paper[setting]:.2f}" if setting in paper else "not given",
            *(estimate(statistics.mean, reading.normalized(setting)) for reading in readings),
        ]
        for setting in scores.settings()
    ]
    labels = [f"0: {RANDOM_CHOICES[reading.random]}; 1: {BEST_CHOICES[reading.best]}" for reading in readings]
    return table(["setting", "paper", *labels], rows)


def other_libraries(scores: Scores) -> str:
    """
    What others report for clipping at 0.2, beside ours.

    :param scores: the scores
    :return: Markdown, empty if the setting has not been run
    """
    if "clip_0.2" not in scores.settings():
        return ""
    with (DATA / "other_libraries.csv").open(newline="") as file:
        others = list(csv.DictReader(file))
    returns = scores.returns("clip_0.2")
    rows = [[f"**here** (-v4, {returns.shape[1]} seeds)", *(format_return(mean) for mean in returns.mean(axis=1))]]
    for other in others:
        numbers = [format_return(float(other[env])) if other[env] else "" for env in scores.tasks]
        rows.append([f"[{other['library']}]({other['source']}) ({other['details']})", *numbers])
    return table(["", *short(scores.tasks)], rows)


def more_seeds(everything: Scores, runs: Sequence[Run]) -> dict[str, Any]:
    """
    Table 1 with more seeds, for the settings that have them.

    :param everything: the scores
    :param runs: the runs with other seeds
    :return: the seeds, and Markdown; empty if there are no such runs
    """
    if not runs:
        return {}
    settings = {run.setting for run in runs}
    scores = everything.only([run for run in everything.rows if run.variant == "paper" and run.setting in settings])
    return {"seeds": sorted({run.seed for run in scores.rows}), "table_1": table_1(scores)}
