"""Tables in Markdown, and what stands in their cells."""

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.paper import statistics
from benchmarks.paper.experiments import TASKS
from benchmarks.paper.scores import Scores

# Every bootstrap and permutation test is drawn by a generator of its own, from this seed
SEED = 0
# Marks runs that ended early
EARLY = "†"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """
    A table in Markdown.

    :param header: names of the columns
    :param rows: the cells
    :return: the table
    """
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])


def format_score(score: float, sign: str = "") -> str:
    """
    A normalised score, with two decimals, or two digits if it is large.

    :param score: the score
    :param sign: "+" to write the sign of positive numbers
    :return: a cell
    """
    # No minus before a zero
    return _rounded(score if abs(score) >= 100 else round(score, 2) + 0.0, sign)


def _rounded(score: float, sign: str = "") -> str:
    return f"{score:{sign}.2g}" if abs(score) >= 100 else f"{score:{sign}.2f}"


def format_return(number: float) -> str:
    """
    A return, with one decimal if it is small, with three digits if it is large.

    :param number: the return
    :return: a cell
    """
    return f"{number:.1f}" if abs(number) < 100 else f"{number:.0f}" if abs(number) < 1e5 else f"{number:.3g}"


def format_p(p: float) -> str:
    """
    A p-value, which is drawn at random, so that no more digits are certain.

    :param p: the p-value
    :return: a cell
    """
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def interval(center: float, half_width: float, sign: str = "") -> str:
    """A score, or a difference, and its interval, as ``with_ends``."""
    return with_ends(center, center - half_width, center + half_width, sign)


def with_ends(center: float, low: float, high: float, sign: str = "") -> str:
    """A number and its interval, whose ends keep their sign where they round to 0: it tells on which side 0 is."""
    return f"{format_score(center, sign)} ({_rounded(low)} to {_rounded(high)})"


def format_mean(scores: np.ndarray) -> str:
    """The mean score, and its 95% interval."""
    return interval(float(statistics.mean(scores)), statistics.half_width(scores))


def format_difference(scores: np.ndarray, others: np.ndarray) -> str:
    """The difference of two mean scores, and its 95% interval."""
    return interval(float(statistics.difference(scores, others)), statistics.half_width(scores, others), sign="+")


def format_without_largest(scores: np.ndarray, others: np.ndarray) -> str:
    """The difference without the task that contributes most to it."""
    differences = scores.mean(axis=1) - others.mean(axis=1)
    largest = int((np.sign(differences.mean()) * differences).argmax())
    rest = format_difference(np.delete(scores, largest, axis=0), np.delete(others, largest, axis=0))
    return f"{rest} without {short(TASKS[largest])}"


def format_bootstrapped(statistic: Callable[..., np.ndarray], *samples: np.ndarray) -> str:
    """A statistic of scores, and its 95% interval by the bootstrap."""
    low, high = statistics.bootstrap(statistic, samples, np.random.default_rng(SEED), n_resamples=2000)
    return with_ends(float(statistic(*samples)), float(low), float(high))


def format_returns_by_task(scores: Scores, setting: str, variant: str = "paper") -> list[str]:
    """Mean return and standard deviation over seeds in each task, marked where a run ended early."""
    cells = []
    for env, runs in zip(scores.tasks, scores.returns(setting, variant), strict=True):
        early = EARLY if scores.ended_early(env, setting, variant).any() else ""
        cells.append(f"{format_return(runs.mean())} ± {format_return(runs.std(ddof=1))}{early}")
    return cells


def format_equivalence(low: float, high: float, margin: float, digits: int = 1) -> str:
    """
    Whether two means are equivalent: by two one-sided tests, if the interval of their difference is within the margin.

    :param low: end of the interval; at 90%, both tests are at 5%
    :param high: the other end
    :param margin: the largest difference that does not matter
    :param digits: decimals of the margin
    :return: a cell
    """
    return f"{'yes' if -margin < low and high < margin else 'not shown'}: {margin:.{digits}f}"


def p_value(one: np.ndarray, other: np.ndarray) -> float:
    """That of the difference of two mean scores."""
    return statistics.permutation_test(one, other, np.random.default_rng(SEED))


def short(env: str) -> str:
    """The name of a task."""
    return env.removesuffix("-v4")
