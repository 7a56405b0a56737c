"""The tables and the drawing of Figure 3, section 6.2: docs/figure3.md has the rules."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.paper import figure3, statistics
from benchmarks.paper.experiments import PILOTS, STAGES, TASKS, Run, planned
from benchmarks.paper.figure3 import CANDIDATES, CONTESTANTS, PILOT_SEEDS, PILOT_TASKS, PPO
from benchmarks.paper.results import Results
from benchmarks.paper.scores import DATA, Scores, read_constants, rows_of
from benchmarks.paper.tables import (
    EARLY,
    Study,
    format_bootstrapped,
    format_difference,
    format_mean,
    format_p,
    format_return,
    p_value,
    table,
)

LABELS = {PPO: "PPO", **{name: contestant.label for name, contestant in CONTESTANTS.items()}}
RUNS = planned("paper", [PPO], figure3.SEEDS) + STAGES["figure3"]
MARKERS = "osd^vx"


def scores_of(study: Study) -> Scores:
    """
    The scores of Figure 3's runs.

    :param study: the results
    :return: the scores
    :raises MissingRunsError: if a run has not been made
    """
    return Scores(rows_of(study.results, RUNS), study.constants)


def readings() -> dict[str, np.ndarray]:
    """The returns that a third party has read from the paper's plot, in the order of ``TASKS``, by contestant."""
    with (DATA / "figure3_readings.csv").open(newline="") as file:
        rows = {row["env"]: row for row in csv.DictReader(file)}
    names = [name for name in rows[TASKS[0]] if name != "env"]
    return {name: np.array([float(rows[env][name]) for env in TASKS]) for name in names}


def tasks_won(returns: dict[str, np.ndarray]) -> dict[str, int]:
    """
    In how many tasks no other contestant has a higher return.

    :param returns: of each contestant, shape ``(n_tasks,)``
    :return: numbers by contestant; a tie counts for each of those that tie
    """
    best = np.max(list(returns.values()), axis=0)
    return {name: int((own == best).sum()) for name, own in returns.items()}


def comparison(scores: Scores) -> str:
    """PPO against each of the five: the primary comparison, and the tasks won."""
    ppo = scores.normalized(PPO)
    p_values = {name: p_value(ppo, scores.normalized(name)) for name in CONTESTANTS}
    adjusted = dict(zip(p_values, statistics.holm(list(p_values.values())), strict=True))
    won = tasks_won({name: scores.returns(name).mean(axis=1) for name in LABELS})
    won_in_paper = tasks_won(readings())
    rows = []
    for name, label in LABELS.items():
        own = scores.normalized(name)
        cells = [""] * 4
        if name != PPO:
            improvement = format_bootstrapped(statistics.probability_of_improvement, ppo, own)
            cells = [format_difference(ppo, own), improvement, format_p(p_values[name]), format_p(adjusted[name])]
        rows.append([label, format_mean(own), *cells, str(won[name]), str(won_in_paper.get(name, ""))])
    header = ["", "score", "PPO minus it", "probability that PPO is better", "p", "adjusted p", "tasks won"]
    return table([*header, "of the four in the paper's plot"], rows)


def by_task(scores: Scores) -> str:
    """Mean returns and standard deviations over seeds in each task, and the readings."""
    rows = []
    for name, label in LABELS.items():
        cells = [
            f"{format_return(own.mean())} ± {format_return(own.std(ddof=1))}"
            f"{EARLY if scores.ended_early(env, name).any() else ''}"
            for env, own in zip(scores.tasks, scores.returns(name), strict=True)
        ]
        rows.append([label, *cells])
        if name in readings():
            rows.append([f"{label}: the paper's plot", *map(format_return, readings()[name])])
    return table(["", *(env.removesuffix("-v4") for env in scores.tasks)], rows)


def distance(scores: Scores) -> str:
    """How far the means are from the paper's plot."""
    random, best = scores.constant("uniform"), scores.constant("best_run")
    rows = []
    for name, read in readings().items():
        papers = statistics.normalize(read[:, None], random, best)[:, 0]
        own = scores.normalized(name)
        gaps = own.mean(axis=1) - papers
        inside = (own.min(axis=1) <= papers) & (papers <= own.max(axis=1))
        largest = int(np.abs(gaps).argmax())
        cells = [f"{papers.mean():.2f}", f"{own.mean():.2f}", f"{np.abs(gaps).mean():.2f}", f"{inside.sum()} of {len(gaps)}"]
        rows.append([LABELS[name], *cells, f"{scores.tasks[largest].removesuffix('-v4')} ({gaps[largest]:+.2f})"])
    header = ["", "score in the paper's plot", "score here", "mean distance", "tasks with the paper within the seeds' range"]
    return table([*header, "farthest task (here - paper)"], rows)


def mean_ranks(returns: np.ndarray) -> np.ndarray:
    """
    The mean rank of each candidate in the pilot, 1 for the best.

    :param returns: shape ``(n_candidates, n_pairs of task and seed)``
    :return: shape ``(n_candidates,)``; those that tie share their ranks
    """
    return stats.rankdata(-returns, axis=0).mean(axis=1)


def pilot(study: Study) -> tuple[str, dict[str, str]]:
    """
    The pilot's table, and its choice.

    :param study: the results of the pilot
    :return: the table; of each contestant the name of the candidate with the lowest mean rank, the first of equals
    """
    made = rows_of(study.results, PILOTS["figure3_pilot"])
    # The score of a run that has ended early does not say what became of it
    scores = {run: -np.inf if row["diverged"] else float(row["score"]) for run, row in made.items()}
    pairs = [(env, seed) for env in PILOT_TASKS for seed in PILOT_SEEDS]
    rows, chosen = [], {}
    for contestant, candidates in CANDIDATES.items():
        returns = np.array([[scores[Run("paper", name, *pair)] for pair in pairs] for name in candidates])
        ranks = mean_ranks(returns)
        chosen[contestant] = list(candidates)[int(ranks.argmin())]
        for name, own, rank in zip(candidates, returns, ranks, strict=True):
            label = f"**{name}**" if name == chosen[contestant] else name
            rows.append([label, *map(format_return, own), f"{rank:.2f}"])
    return table(["candidate", *(f"{env}, seed {seed}" for env, seed in pairs), "mean rank"], rows), chosen


TABLES: dict[str, Callable[[Study], str]] = {
    "figure3": lambda study: comparison(scores_of(study)),
    "figure3_by_task": lambda study: by_task(scores_of(study)),
    "figure3_distance": lambda study: distance(scores_of(study)),
    "figure3_pilot": lambda study: pilot(study)[0],
}


def draw(results: Results, directory: Path, constants: Path, runs: Sequence[Run] = RUNS) -> None:
    """
    Draw Figure 3.

    :param results: the results
    :param directory: where it goes, as SVG and PDF
    :param constants: file of the constants of the normalisation
    :param runs: its runs
    :raises MissingRunsError: if a run has not been made
    """
    from benchmarks.paper.figures import mpl, of_runs, plt

    scores = Scores(rows_of(results, runs), read_constants(constants))
    directory.mkdir(parents=True, exist_ok=True)
    # The same file for the same figure
    mpl.rcParams.update({"svg.hashsalt": "sb3_ppo_variants", "figure.constrained_layout.use": True})
    figure = learning_curves(results, scores)
    figure.savefig(directory / "figure3.svg", metadata={"Date": None, "Description": of_runs(scores)})
    figure.savefig(directory / "figure3.pdf", metadata={"CreationDate": None, "Subject": of_runs(scores)})
    plt.close(figure)


def learning_curves(results: Results, scores: Scores, points: int = 50) -> Any:
    """
    Returns over training, a panel for each task: the mean over seeds of the running score (last 100 episodes), the range
    between the quartiles, and the readings of the paper's plot as markers at the right edge, at the end of the axis where
    they are beyond it.

    :param results: the results
    :param scores: the scores of Figure 3's runs
    :param points: points of a curve
    :return: the figure
    """
    from matplotlib.ticker import EngFormatter

    from benchmarks.paper.figures import LINES, plt, running_score

    figure, panels = plt.subplots(2, 4, figsize=(11, 5.2), squeeze=False)
    timesteps = max(row["timesteps"] for row in scores.rows.values())
    grid = np.linspace(0, timesteps, points + 1)[1:]
    papers = readings()
    colors = {name: "black" if name == PPO else f"C{i - 1}" for i, name in enumerate(LABELS)}
    for axes, env in zip(panels.flat, scores.tasks, strict=False):
        lowest, highest = scores.constants[env]["uniform"], scores.constants[env]["best_run"]
        for i, (name, label) in enumerate(LABELS.items()):
            runs = [run for run in scores.rows if (run.setting, run.env) == (name, env)]
            if not runs:
                continue
            curves = np.array([running_score(results.load(run).curves, grid) for run in runs])
            look = {"color": colors[name], "linestyle": LINES[i % len(LINES)], "linewidth": 2.0 if name == PPO else 1.3}
            # From where each seed has ended an episode
            axes.plot(grid, curves.mean(axis=0), label=label, **look)
            quartiles = np.quantile(curves, [0.25, 0.75], axis=0)
            axes.fill_between(grid, *quartiles, color=colors[name], alpha=0.12, linewidth=0)
        # Beyond, a collapse would hide all else
        margin = highest - lowest
        low, high = axes.get_ylim()
        high = max(high, *(paper[TASKS.index(env)] for paper in papers.values()))
        axes.set_ylim(max(low, lowest - margin), min(high, highest + margin))
        for i, (name, paper) in enumerate(papers.items()):
            look = {"color": colors[name], "marker": MARKERS[i], "markersize": 6, "markeredgecolor": "white"}
            place = 1.04 * timesteps, np.clip(paper[TASKS.index(env)], *axes.get_ylim())
            axes.plot(*place, linestyle="", clip_on=False, zorder=3, **look)
        axes.set_title(env.removesuffix("-v4"), fontsize=10)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    handles, labels = panels[0, 0].get_legend_handles_labels()
    legend_axes = panels[1, 3]
    legend_axes.axis("off")
    legend_axes.legend(handles, labels, loc="center", frameon=False, fontsize=9, title="markers: the paper's plot")
    for axes in panels.flat[len(scores.tasks) : -1]:
        axes.axis("off")
    for axes in panels[1, :3]:
        axes.set_xlabel("timesteps")
    return figure
