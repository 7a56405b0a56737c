"""The tables of docs/paper.md, in Markdown."""

import csv
import inspect
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.paper import statistics
from benchmarks.paper.claims import CHEETAH, adjusted, checked_claims, compared_pairs, p_values
from benchmarks.paper.experiments import REFERENCES, SETTINGS, VARIANTS, Run
from benchmarks.paper.results import Results
from benchmarks.paper.scores import BEST_CHOICES, DATA, RANDOM_CHOICES, MissingRunsError, Scores, paper_scores
from benchmarks.paper.words import (
    bootstrap_in_words,
    format_p,
    format_return,
    format_score,
    interval_in_words,
    mean_in_words,
    pairs_in_words,
)
from sb3_ppo_variants import PPOKLPen

# The paper's runs of a setting in a task
PAPER_SEEDS = 3
# Marks runs that ended early
EARLY = "†"
KL_COEF_BOUNDS = inspect.signature(PPOKLPen).parameters["kl_coef_bounds"].default


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """
    A table in Markdown.

    :param header: names of the columns
    :param rows: the cells
    :return: the table
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def counts(column: str, scores: Scores) -> str:
    """
    How often each value of a column of the rows occurs.

    :param column: its name
    :param scores: the scores
    :return: Markdown
    """
    values = Counter(row[column] for row in scores.rows.values())
    return table([column, "runs"], [[value, str(count)] for value, count in values.most_common()])


def commits(scores: Scores) -> str:
    """
    The commits that the runs were made with.

    :param scores: the scores of Table 1's runs
    :return: Markdown
    """
    seeds = sorted({run.seed for run in scores.rows})
    rows = []
    for setting in (*scores.settings(), *REFERENCES):
        own = {run: row["commit"][:7] for run, row in scores.rows.items() if run.setting == setting}
        of_seeds = [dict.fromkeys(commit for run, commit in own.items() if run.seed == seed) for seed in seeds]
        rows.append([label_of(setting), *map(", ".join, of_seeds)])
    return table(["", *(f"seed {seed}" for seed in seeds)], rows)


def label_of(setting: str) -> str:
    """
    A setting or a policy that is not trained in words.

    :param setting: its name
    :return: the words
    """
    return {**SETTINGS, **REFERENCES}[setting].label


def half_width_to_paper(normalized: np.ndarray) -> float:
    """
    Half the width of the interval of a difference from the paper's mean, if that varies as ours would with as many seeds.

    :param normalized: scores of a setting, shape ``(n_tasks, n_seeds)``
    :return: half the width
    """
    return statistics.half_width(normalized) * math.sqrt(1 + normalized.shape[1] / PAPER_SEEDS)


def table_1(scores: Scores) -> str:
    """
    Table 1 beside the paper's.

    :param scores: the scores
    :return: Markdown
    """
    paper, (uniform, untrained) = paper_scores(), scores.readings_of_random()
    rows = []
    references = ["untrained"] if scores.returns("untrained").size else []
    for setting in (*scores.settings(), *references):
        normalized = uniform.normalized(setting)
        difference = ""
        if setting in paper:
            distance = float(statistics.mean(normalized)) - paper[setting]
            difference = interval_in_words(distance, half_width_to_paper(normalized), sign="+")
        rows.append(
            [
                label_of(setting),
                f"{paper[setting]:.2f}" if setting in paper else "not given" if setting in SETTINGS else "",
                mean_in_words(normalized),
                difference,
                mean_in_words(untrained.normalized(setting)),
                str(normalized.size),
            ]
        )
    header = ["setting", "paper", "here", "here - paper", f"here if 0 is {RANDOM_CHOICES['untrained']}", "runs"]
    return table(header, rows)


def other_summaries(scores: Scores) -> str:
    """
    Statistics of all runs of a setting with bootstrapped intervals.

    :param scores: the scores
    :return: Markdown
    """
    by_best_setting = Scores(scores.rows, scores.constants, scores.random, "best_setting")
    rows = [
        [
            label_of(setting),
            bootstrap_in_words(statistics.mean, scores.normalized(setting)),
            bootstrap_in_words(statistics.interquartile_mean, scores.normalized(setting)),
            bootstrap_in_words(statistics.optimality_gap, by_best_setting.normalized(setting)),
        ]
        for setting in scores.settings()
    ]
    return table(["setting", "mean", "interquartile mean", "optimality gap, if 1 is the best setting"], rows)


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
    rows = [[*claim, f"{n_alike} of {n_readings} readings"] for claim, n_alike, n_readings in checked_claims(scores)]
    return table(["in the paper", "here", "verdict", "same verdict under"], rows)


def n_below_start(scores: Scores, setting: str, env: str, variant: str = "paper") -> int:
    """
    How many runs end with a score below that of the policy before training.

    :param scores: the scores
    :param setting: name of the setting
    :param env: the task
    :param variant: name of the variant
    :return: that number
    """
    start = scores.constants[env]["untrained"]
    if VARIANTS[variant].bounded_actions:
        returns = scores.returns_in(env, "untrained", "bounded_actions")
        if not len(returns):
            raise MissingRunsError("The policy before training has not been run with bounded actions: stage details_sb3")
        start = returns.mean()
    return int((scores.returns_in(env, setting, variant) < start).sum())


def returns_by_seed(scores: Scores, setting: str, env: str, variant: str = "paper") -> str:
    """
    The scores of the runs of a setting in a task, in words.

    :param scores: the scores
    :param setting: name of the setting
    :param env: the task
    :param variant: name of the variant
    :return: the words
    """
    runs = zip(scores.returns_in(env, setting, variant), scores.ended_early(env, setting, variant), strict=True)
    return ", ".join(f"{format_return(score)}{EARLY if early else ''}" for score, early in runs)


def comparisons(scores: Scores, to: str) -> str:
    """
    A setting against all others.

    :param scores: the scores
    :param to: name of the setting
    :return: Markdown
    """
    paper = paper_scores()
    of_paper = [setting for setting in scores.settings() if setting in paper and setting != to]
    adjusted_p = dict(zip(of_paper, adjusted(scores, to, of_paper), strict=True))
    rows = []
    for setting in scores.settings():
        if setting == to:
            continue
        pair = scores.normalized(to), scores.normalized(setting)
        rows.append(
            [
                label_of(setting),
                f"{paper[to] - paper[setting]:+.2f}" if setting in paper else "not given",
                mean_in_words(*pair),
                bootstrap_in_words(statistics.probability_of_improvement, *pair),
                pairs_in_words(*pair),
                format_p(p_values([pair])[0]),
                format_p(adjusted_p[setting]) if setting in paper else "",
            ]
        )
    header = ["against", "paper: difference", "here: difference", "probability of improvement", "pairs", "p", "adjusted p"]
    return table(header, rows)


def no_clipping(scores: Scores) -> str:
    """
    "No clipping or penalty" task by task.

    :param scores: the scores
    :return: Markdown, empty if it has not been run
    """
    if "none" not in scores.settings():
        return ""
    readings = [reading.normalized("none") for reading in scores.readings_of_random()]
    n_below = [n_below_start(scores, "none", env) for env in scores.tasks]
    rows = [
        [env, returns_by_seed(scores, "none", env), *(format_score(reading[task].mean()) for reading in readings), str(n)]
        for task, (env, n) in enumerate(zip(scores.tasks, n_below, strict=True))
    ]
    means = [format_score(reading.mean()) for reading in readings]
    rows.append(["all", "", *means, f"{sum(n_below)} of {readings[0].size}"])
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
            label = f"{label_of(setting)}; {VARIANTS[variant].label}"
            # Some have been run on HalfCheetah alone
            has_all_tasks = all(scores.returns_in(env, setting, variant).size for env in scores.tasks)
            cells = ["", "", ""]
            if has_all_tasks:
                own, papers = scores.normalized(setting, variant), scores.normalized(setting)
                cells[0] = mean_in_words(own)
                if variant != "paper":
                    cells[1:] = [mean_in_words(own, papers), format_p(p_values([(own, papers)])[0])]
                by_task.append([label, *means_by_task(scores, setting, variant)])
            rows.append([label, *cells, *cheetah_cells(scores, setting, variant)])
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
    return [
        f"{format_return(runs.mean())} ± {format_return(runs.std(ddof=1))}"
        f"{EARLY if scores.ended_early(env, setting, variant).any() else ''}"
        for env, runs in zip(scores.tasks, scores.returns(setting, variant), strict=True)
    ]


def by_task(scores: Scores) -> str:
    """
    Scores by task.

    :param scores: the scores
    :return: Markdown
    """
    rows = [[label_of(setting), *means_by_task(scores, setting)] for setting in scores.settings()]
    rows += [[reference.label, *means_by_task(scores, name)] for name, reference in REFERENCES.items()]
    return table(["", *short(scores.tasks)], rows)


def short(tasks: Sequence[str]) -> list[str]:
    """
    Ids of tasks without the version, which is that of all.

    :param tasks: the ids
    :return: the names
    """
    return [env.removesuffix("-v4") for env in tasks]


def adaptation(results: Results, scores: Scores) -> dict[str, str]:
    """
    How well the adaptive penalty meets its target.

    :param results: the results, with KL and beta of each update
    :param scores: the scores
    :return: Markdown, and the shares of the updates outside the band; empty if there are no such settings
    """
    rows, outside, far = [], [], []
    for setting in scores.settings():
        if not setting.startswith("adaptive"):
            continue
        curves = [results.load(run).curves for run in scores.rows if (run.variant, run.setting) == ("paper", setting)]
        kl = np.concatenate([curve["kl"] for curve in curves]) / SETTINGS[setting].kwargs["target_kl"]
        beta = np.concatenate([curve["kl_coef"] for curve in curves])
        low, high = KL_COEF_BOUNDS
        is_below, is_above = kl < 1 / 1.5, kl > 1.5
        outside.append(np.mean(is_below | is_above))
        far.append(np.mean((kl < 1 / 4) | (kl > 4)))
        rows.append(
            [
                label_of(setting),
                *(f"{np.mean(part):.0%}" for part in (is_below, ~is_below & ~is_above, is_above)),
                f"{far[-1]:.0%}",
                *(f"{number:.3g}" for number in (np.median(kl), kl.mean(), np.quantile(kl, 0.95), kl.max())),
                f"{beta.min():.2g} to {beta.max():.2g}",
                f"{((beta <= low) | (beta >= high)).sum()} of {len(beta)}",
            ]
        )
    header = ["", "below the band", "in it", "above it", "off by a factor of 4", "KL / d_targ: median", "mean", "95% quantile"]
    return {
        "adaptation": table([*header, "largest", "beta", "updates with beta at a bound"], rows) if rows else "",
        **{
            name: f"{min(shares):.0%} to {max(shares):.0%}" if shares else ""
            for name, shares in (("outside", outside), ("far", far))
        },
    }


def sensitivity(scores: Scores) -> str:
    """
    Table 1 under each reading of what the paper leaves open.

    :param scores: the scores
    :return: Markdown
    """
    paper, readings = paper_scores(), scores.readings()
    rows = [
        [
            label_of(setting),
            f"{paper[setting]:.2f}" if setting in paper else "not given",
            *(mean_in_words(reading.normalized(setting)) for reading in readings),
        ]
        for setting in scores.settings()
    ]
    labels = [f"0: {RANDOM_CHOICES[reading.random]}; 1: {BEST_CHOICES[reading.best]}" for reading in readings]
    return table(["setting", "paper", *labels], rows)


def other_libraries(scores: Scores) -> str:
    """
    What the paper's Figure 3 and others report for clipping at 0.2, beside ours.

    :param scores: the scores, of all seeds
    :return: Markdown, empty if the setting has not been run
    """
    if "clip_0.2" not in scores.settings():
        return ""
    with (DATA / "other_libraries.csv").open(newline="") as file:
        others = list(csv.DictReader(file))
    returns = scores.returns("clip_0.2").mean(axis=1)
    n_seeds = len(scores.returns_in(scores.tasks[0], "clip_0.2"))
    rows = [[f"**here** (-v4, {n_seeds} seeds)", *map(format_return, returns)]]
    for other in others:
        numbers = [format_return(float(other[env])) if other[env] else "" for env in scores.tasks]
        rows.append([f"[{other['library']}]({other['source']}) ({other['details']})", *numbers])
    outside = []
    for env, mean in zip(scores.tasks, returns, strict=True):
        reported = [float(other[env]) for other in others if other[env]]
        if not min(reported) <= mean <= max(reported):
            outside.append(f"{short([env])[0]} ({'below' if mean < min(reported) else 'above'} all of them)")
    found = f"In {len(returns) - len(outside)} of {len(returns)} tasks, the mean here is within the range of the others"
    found += f"; not in {', '.join(outside)}. That range is wide." if outside else ". That range is wide."
    return f"{table(['', *short(scores.tasks)], rows)}\n\n{found}"


def more_seeds(everything: Scores, runs: Sequence[Run]) -> dict[str, Any]:
    """
    Table 1 with more seeds, for the settings that have them.

    :param everything: the scores
    :param runs: the runs with other seeds
    :return: the seeds, Markdown, and whether there are differences, by name; empty if there are no such runs
    """
    if not runs:
        return {}
    settings = {run.setting for run in runs}
    scores = everything.only([run for run in everything.rows if run.variant == "paper" and run.setting in settings])
    new = scores.only(runs)
    first = scores.only([run for run in scores.rows if run not in new.rows])
    paper, parts = paper_scores(), (first, new, scores)
    rows = [
        [label_of(setting), f"{paper[setting]:.2f}", *(mean_in_words(part.normalized(setting)) for part in parts), "", ""]
        for setting in scores.settings()
    ]
    differences = [
        [
            f"{label_of(one)}, minus {label_of(other)}",
            f"{paper[one] - paper[other]:+.2f}",
            *(mean_in_words(part.normalized(one), part.normalized(other)) for part in parts),
            *map(format_p, p_values([(new.normalized(one), new.normalized(other)), samples])),
        ]
        for one, other, samples, _ in compared_pairs(scores)
    ]
    seeds = [f"{min(run.seed for run in part.rows)} to {max(run.seed for run in part.rows)}" for part in parts]
    header = ["", "paper", *(f"seeds {some}" for some in seeds), *(f"p, seeds {some}" for some in seeds[1:])]
    by_task = [[label_of(setting), *means_by_task(scores, setting)] for setting in scores.settings()]
    return {
        "seeds": seeds[-1],
        "table_1": table_1(scores),
        "parts": table(header, rows + differences),
        "has_pairs": bool(differences),
        "summaries": other_summaries(scores),
        "by_task": table(["", *short(scores.tasks)], by_task),
    }
