"""Numbers in words, as the report has them."""

from collections.abc import Callable

import numpy as np

from benchmarks.paper import statistics

# Every bootstrap and permutation test is drawn by a generator of its own, from this seed
SEED = 0


def format_score(score: float, sign: str = "") -> str:
    """
    A normalised score in words.

    :param score: the score
    :param sign: "+" to write the sign of positive numbers
    :return: with two decimals, or two digits if it is large
    """
    if abs(score) >= 100:
        return f"{score:{sign}.2g}"
    # No minus before a zero
    return f"{round(score, 2) + 0.0:{sign}.2f}"


def format_return(number: float) -> str:
    """
    A return in words.

    :param number: the return
    :return: with one decimal if it is small, with three digits if it is large
    """
    if abs(number) < 100:
        return f"{number:.1f}"
    return f"{number:.0f}" if abs(number) < 1e5 else f"{number:.3g}"


def format_p(p: float) -> str:
    """
    A p-value in words.

    :param p: the p-value
    :return: with three decimals, or with two if it is large: those are drawn at random, and no more digits are certain
    """
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def mean_in_words(scores: np.ndarray, others: np.ndarray | None = None) -> str:
    """
    The mean of some runs, or by how much it is above that of others, with its 95% interval.

    :param scores: shape ``(n_tasks, n_runs)``
    :param others: shape ``(n_tasks, n_other_runs)``
    :return: the words
    """
    if others is None:
        return interval_in_words(float(statistics.mean(scores)), statistics.half_width(scores))
    return interval_in_words(float(statistics.difference(scores, others)), statistics.half_width(scores, others), sign="+")


def interval_in_words(center: float, half_width: float, sign: str = "") -> str:
    """
    A number and an interval around it.

    :param center: the number
    :param half_width: half the width of the interval
    :param sign: "+" to write the sign of a positive number
    :return: the words
    """
    return f"{format_score(center, sign)} ({format_score(center - half_width)} to {format_score(center + half_width)})"


def bootstrap_in_words(statistic: Callable[..., np.ndarray], *samples: np.ndarray) -> str:
    """
    A statistic and its 95% interval by the bootstrap.

    :param statistic: as that of ``statistics.bootstrap``
    :param samples: its arguments
    :return: the words
    """
    low, high = statistics.bootstrap(statistic, samples, np.random.default_rng(SEED), n_resamples=2000)
    return f"{format_score(float(statistic(*samples)))} ({format_score(float(low))} to {format_score(float(high))})"


def pairs_in_words(scores: np.ndarray, others: np.ndarray) -> str:
    """
    In how many pairs of runs of the same task the first has the better score.

    :param scores: shape ``(n_tasks, n_runs)``
    :param others: shape ``(n_tasks, n_other_runs)``
    :return: the words; ties count half
    """
    n_pairs = scores.size * others.shape[1]
    return f"{n_pairs * float(statistics.probability_of_improvement(scores, others)):g} of {n_pairs}"
