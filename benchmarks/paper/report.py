"""The report docs/paper.md, made from the results."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from benchmarks.paper import statistics
from benchmarks.paper.claims import (
    CHEETAH,
    LEVEL,
    MARGIN,
    SEED,
    VERY_NEGATIVE,
    claims,
    estimate,
    format_p,
    format_score,
    p_values,
)
from benchmarks.paper.experiments import REFERENCES, SEEDS, SETTINGS, STAGES, VARIANTS, Run, command
from benchmarks.paper.results import Results
from benchmarks.paper.scores import (
    BEST_CHOICES,
    DATA,
    RANDOM_CHOICES,
    MissingRunsError,
    Scores,
    paper_scores,
    read_constants,
    rows_of,
)
from benchmarks.paper.training import LAST_EPISODES

REPORT = Path(__file__).parents[2] / "docs" / "paper.md"
# Its text
TEMPLATE = Path(__file__).parent / "report.md.j2"
# Updates over which the figure averages KL and beta: from one to the next, beta often goes up and down
WINDOW = 20


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


def run_in_words(run: Run) -> str:
    """
    A run in words.

    :param run: the run
    :return: the words
    """
    variant = "" if run.variant == "paper" else f" ({VARIANTS[run.variant].label})"
    return f"{SETTINGS[run.setting].label}{variant} on {run.env}, seed {run.seed}"


def report(results: Results, constants: Path, stages: Mapping[str, Sequence[Run]] = STAGES) -> str:
    """
    The report: on Table 1, whose runs must all be there, and on each further part of the study that is complete.

    :param results: the results
    :param constants: file of the constants of the normalisation
    :param stages: the parts of the study
    :return: Markdown
    :raises MissingRunsError: if a run of Table 1 has not been made
    """
    there = results.rows()
    n_done = {stage: sum(run in there for run in runs) for stage, runs in stages.items()}
    unfinished = {stage: f"{n_done[stage]} of {len(runs)}" for stage, runs in stages.items() if n_done[stage] < len(runs)}
    complete = [stage for stage in stages if stage not in unfinished]
    rows = rows_of(results, stages["table1"]) | {run: there[run] for stage in complete for run in stages[stage]}
    everything = Scores(rows, read_constants(constants))
    scores = everything.only(stages["table1"])
    trained = {run: row for run, row in everything.rows.items() if run.setting in SETTINGS}
    example = next(iter(trained))
    environment = Environment(trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        tasks=scores.tasks,
        seeds=SEEDS,
        last_episodes=LAST_EPISODES,
        level=LEVEL,
        window=WINDOW,
        table_1=table_1(scores),
        constants=constants_table(scores),
        diverged=[
            f"{run_in_words(run)}, after {row['steps']} timesteps" for run, row in everything.rows.items() if row["diverged"]
        ],
        claims=claims_table(everything),
        margin=MARGIN,
        very_negative=VERY_NEGATIVE,
        rank_correlation=rank_correlation(scores),
        comparisons=comparisons(scores, to="clip_0.2"),
        no_clipping=no_clipping(scores),
        by_task=by_task(scores),
        adaptation=adaptation(results, scores),
        sensitivity=sensitivity(scores),
        other_libraries=other_libraries(scores),
        **details(everything, [run for stage in complete if stage.startswith("details") for run in stages[stage]]),
        more_seeds=more_seeds(everything, [run for stage in complete if stage.startswith("seeds") for run in stages[stage]]),
        n_trained=len(trained),
        seconds=round(sum(row["seconds"] for row in trained.values()) / len(trained)),
        unfinished=unfinished,
        steps=max(row["steps"] for row in trained.values()),
        command=command(example, trained[example]["commit"], trained[example]["timesteps"]),
        commits=counts("commit", everything),
        versions=counts("versions", everything),
    )


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
                format_p(p_values([pair])[0]).removeprefix("p = ").removeprefix("p "),
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
                cells = [estimate(statistics.difference, own, papers, sign="+"), format_p(p_values([(own, papers)])[0])]
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
