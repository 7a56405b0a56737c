"""The tables of Figure 3, section 6.2: docs/figure3.md has the rules."""

import csv
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats

from benchmarks.paper import figure3, statistics
from benchmarks.paper.cells import (
    format_bootstrapped,
    format_difference,
    format_mean,
    format_p,
    format_return,
    format_returns_by_task,
    format_without_largest,
    p_value,
    table,
)
from benchmarks.paper.experiments import PILOTS, STAGES, TASKS, Run, planned
from benchmarks.paper.figure3 import (
    CANDIDATES,
    CONTESTANTS,
    LATER,
    LATER_CANDIDATES,
    PILOT_SEEDS,
    PILOT_TASKS,
    PPO,
    Contestant,
)
from benchmarks.paper.scores import DATA, Scores, Study, rows_of

Candidates = Mapping[str, Mapping[str, Contestant]]

LABELS = {PPO: "PPO", **{name: contestant.label for name, contestant in CONTESTANTS.items()}}
RUNS = planned("paper", [PPO], figure3.SEEDS) + STAGES["figure3"]
LATER_RUNS = planned("paper", [PPO, "a2c"], figure3.SEEDS) + STAGES["figure3_later"]


def scores_of(study: Study, runs: Sequence[Run] = RUNS) -> Scores:
    """
    The scores of Figure 3's runs.

    :param study: the results
    :param runs: which
    :return: the scores
    :raises MissingRunsError: if a run has not been made
    """
    return Scores(rows_of(study.results, runs), study.constants)


def readings() -> dict[str, np.ndarray]:
    """The returns that Tianshou's authors have read from the paper's plot, in the order of ``TASKS``, by contestant."""
    with (DATA / "figure3_readings.csv").open(newline="") as file:
        rows = {row["env"]: row for row in csv.DictReader(file)}
    names = [name for name in rows[TASKS[0]] if name != "env"]
    return {name: np.array([float(rows[env][name]) for env in TASKS]) for name in names}


def tasks_won_among(returns: dict[str, np.ndarray]) -> dict[str, int]:
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
    won = tasks_won_among({name: scores.returns(name).mean(axis=1) for name in LABELS})
    rows = []
    for name, label in LABELS.items():
        own = scores.normalized(name)
        cells = [""] * 4
        if name != PPO:
            improvement = format_bootstrapped(statistics.probability_of_improvement, ppo, own)
            cells = [format_difference(ppo, own), format_p(adjusted[name]), format_without_largest(ppo, own), improvement]
        rows.append([label, format_mean(own), *cells, str(won[name])])
    header = ["", "score", "PPO minus it", "adjusted p", "without the task that contributes most"]
    return table([*header, "probability that PPO is better", "tasks won"], rows)


def later(scores: Scores) -> str:
    """PPO against A2C and the A2C that was added later, without tests."""
    ppo, rows = scores.normalized(PPO), []
    for name, label in (("a2c", LABELS["a2c"]), *((name, contestant.label) for name, contestant in LATER.items())):
        own = scores.normalized(name)
        improvement = format_bootstrapped(statistics.probability_of_improvement, ppo, own)
        rows.append([label, format_mean(own), format_difference(ppo, own), improvement])
    return table(["", "score", "PPO minus it", "probability that PPO is better"], rows)


def by_task(scores: Scores) -> str:
    """Mean returns and standard deviations over seeds in each task, and the readings."""
    papers, rows = readings(), []
    for name, label in LABELS.items():
        rows.append([label, *format_returns_by_task(scores, name)])
        if name in papers:
            rows.append([f"{label}: the paper's plot", *map(format_return, papers[name])])
    return table(["", *(env.removesuffix("-v4") for env in scores.tasks)], rows)


def distance(scores: Scores) -> str:
    """How far the means are from the paper's plot, and the tasks that each of its four has won."""
    random, best = scores.constant("uniform"), scores.constant("best_run")
    papers = readings()
    won = tasks_won_among({name: scores.returns(name).mean(axis=1) for name in papers})
    won_in_paper = tasks_won_among(papers)
    rows = []
    for name, returns in papers.items():
        paper = statistics.normalize(returns[:, None], random, best)[:, 0]
        own = scores.normalized(name)
        gaps = own.mean(axis=1) - paper
        inside = (own.min(axis=1) <= paper) & (paper <= own.max(axis=1))
        largest = int(np.abs(gaps).argmax())
        cells = [f"{paper.mean():.2f}", f"{own.mean():.2f}", f"{np.abs(gaps).mean():.2f}", f"{inside.sum()} of {len(gaps)}"]
        cells.append(f"{scores.tasks[largest].removesuffix('-v4')} ({gaps[largest]:+.2f})")
        rows.append([LABELS[name], *cells, str(won_in_paper[name]), str(won[name])])
    header = ["", "score in the paper's plot", "score here", "mean distance", "tasks with the paper within the seeds' range"]
    return table([*header, "farthest task (here - paper)", "tasks won in the plot", "tasks won here, of these four"], rows)


def mean_ranks(returns: np.ndarray) -> np.ndarray:
    """
    The mean rank of each candidate in the pilot, 1 for the best.

    :param returns: shape ``(n_candidates, n_pairs of task and seed)``
    :return: shape ``(n_candidates,)``; those that tie share their ranks
    """
    return stats.rankdata(-returns, axis=0).mean(axis=1)


def pilot(study: Study, stage: str = "figure3_pilot", all_candidates: Candidates = CANDIDATES) -> tuple[str, dict[str, str]]:
    """
    A pilot's table, and its choice.

    :param study: the results of the pilot
    :param stage: its name
    :param all_candidates: of each contestant
    :return: the table; of each contestant the name of the candidate with the lowest mean rank, the first of equals
    """
    made = rows_of(study.results, PILOTS[stage])
    # The score of a run that has ended early does not say what became of it
    scores = {run: -np.inf if row["diverged"] else float(row["score"]) for run, row in made.items()}
    pairs = [(env, seed) for env in PILOT_TASKS for seed in PILOT_SEEDS]
    rows, chosen = [], {}
    for contestant, candidates in all_candidates.items():
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
    "figure3_later": lambda study: later(scores_of(study, LATER_RUNS)),
    "figure3_pilot": lambda study: pilot(study)[0],
    "figure3_later_pilot": lambda study: pilot(study, "figure3_later_pilot", LATER_CANDIDATES)[0],
}
