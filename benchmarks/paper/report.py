"""The report docs/paper.md, made from the results."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from benchmarks.paper import tables
from benchmarks.paper.claims import LEVEL, MARGIN
from benchmarks.paper.experiments import SEEDS, SETTINGS, STAGES, VARIANTS, Run, command
from benchmarks.paper.results import DEFAULT, Results
from benchmarks.paper.scores import Scores, read_constants, rows_of
from benchmarks.paper.summary import details_summary, more_seeds_summary, summary, verdicts
from benchmarks.paper.training import LAST_EPISODES

REPORT = Path(__file__).parents[2] / "docs" / "paper.md"
# Its text
TEMPLATE = Path(__file__).parent / "report.md.j2"
# Updates over which the figure averages KL and beta: from one to the next, beta often goes up and down
WINDOW = 20


def run_in_words(run: Run) -> str:
    """
    A run in words.

    :param run: the run
    :return: the words
    """
    variant = "" if run.variant == "paper" else f" ({VARIANTS[run.variant].label})"
    return f"{SETTINGS[run.setting].label}{variant} on {run.env}, seed {run.seed}"


def seconds(rows: Collection[Mapping[str, Any]]) -> int:
    """
    How long some runs took.

    :param rows: their rows
    :return: seconds on average
    """
    return round(sum(row["seconds"] for row in rows) / len(rows))


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

    def complete(part: str) -> list[Run]:
        return [run for stage, runs in stages.items() if stage.startswith(part) and stage not in unfinished for run in runs]

    rows = rows_of(results, stages["table1"]) | {run: there[run] for run in complete("")}
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
        table_1=tables.table_1(scores),
        constants=tables.constants_table(scores),
        early=tables.EARLY,
        diverged=[
            f"{run_in_words(run)}, after {row['steps']} timesteps" for run, row in everything.rows.items() if row["diverged"]
        ],
        verdicts=verdicts(everything),
        claims=tables.claims_table(everything),
        margin=MARGIN,
        summary=summary(scores),
        more_seeds_summary=more_seeds_summary(everything, complete("seeds")),
        details_summary=details_summary(everything, complete("details")),
        other_summaries=tables.other_summaries(scores),
        comparisons=tables.comparisons(scores, to="clip_0.2"),
        no_clipping=tables.no_clipping(scores),
        by_task=tables.by_task(scores),
        **tables.adaptation(results, scores),
        sensitivity=tables.sensitivity(scores),
        other_libraries=tables.other_libraries(everything),
        **tables.details(everything, complete("details")),
        more_seeds=tables.more_seeds(everything, complete("seeds")),
        n_trained=len(trained),
        seconds=seconds(trained.values()),
        seconds_by_task=", ".join(
            f"{name} {seconds([row for row in trained.values() if row['env'] == env])}"
            for env, name in zip(scores.tasks, tables.short(scores.tasks), strict=True)
        ),
        # Some sentences are about the runs of this repository
        is_committed=results.directory == DEFAULT,
        coverage_of_range=f"{1 - 2 * 0.5 ** len(SEEDS):.0%}",
        unfinished=unfinished,
        n_settings=len(scores.settings()),
        steps=max(row["steps"] for row in trained.values()),
        command=command(example, trained[example]["commit"], trained[example]["timesteps"]),
        commits=tables.commits(scores),
        versions=tables.counts("versions", everything),
    )
