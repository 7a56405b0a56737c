"""
Statistics of normalised scores over several tasks. Scores have shape ``(n_tasks, n_runs)``; each function is pure, and what is
random takes a generator. After Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice,
https://arxiv.org/abs/2108.13264.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

Statistic = Callable[[np.ndarray], np.ndarray]


def normalize(scores: np.ndarray, random: np.ndarray, best: np.ndarray) -> np.ndarray:
    """
    Shift and scale scores so that a random policy has 0 and the best result 1 (section 6.1).

    :param scores: returns, shape ``(n_tasks, n_runs)``
    :param random: score of a random policy in each task
    :param best: the best score in each task
    :return: normalised scores, shape ``(n_tasks, n_runs)``
    :raises ValueError: if the best score is not better than that of a random policy
    """
    if not (best > random).all():
        raise ValueError(f"best must be greater than random, but they are {best} and {random}")
    return (scores - random[:, None]) / (best - random)[:, None]


def mean(scores: np.ndarray) -> np.ndarray:
    """
    The mean over all runs: the number in Table 1.

    :param scores: shape ``(..., n_tasks, n_runs)``
    :return: the means, shape ``(...)``
    """
    return scores.mean(axis=(-2, -1))


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """
    The mean of the middle half of all runs.

    :param scores: shape ``(..., n_tasks, n_runs)``
    :return: the means, shape ``(...)``
    """
    return stats.trim_mean(scores.reshape(*scores.shape[:-2], -1), 0.25, axis=-1)


def optimality_gap(scores: np.ndarray) -> np.ndarray:
    """
    How far runs fall short of the best result, on average; better ones do not make up for it.

    :param scores: shape ``(..., n_tasks, n_runs)``
    :return: the gaps, shape ``(...)``
    """
    return 1 - np.minimum(scores, 1).mean(axis=(-2, -1))


def performance_profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """
    The fraction of runs with a score above each threshold.

    :param scores: shape ``(..., n_tasks, n_runs)``
    :param thresholds: shape ``(n,)``
    :return: the fractions, shape ``(..., n)``
    """
    return (scores[..., None] > thresholds).mean(axis=(-3, -2))


def probability_of_improvement(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """
    The probability that a run has a better score than a run of another setting in the same task, ties counted half, on
    average over the tasks.

    :param scores: shape ``(..., n_tasks, n_runs)``
    :param others: shape ``(..., n_tasks, n_other_runs)``
    :return: the probabilities, shape ``(...)``
    """
    difference = scores[..., :, None] - others[..., None, :]
    return ((difference > 0) + 0.5 * (difference == 0)).mean(axis=(-3, -2, -1))


def bootstrap(
    statistic: Callable[..., np.ndarray], samples: Sequence[np.ndarray], rng: np.random.Generator, n_resamples: int = 10_000
) -> tuple[float, float]:
    """
    A 95% interval by the stratified bootstrap: runs are drawn with replacement within each task, and the interval lies between
    the percentiles of the statistic.

    :param statistic: a function of scores, which may have leading dimensions
    :param samples: its arguments, each of shape ``(n_tasks, n_runs)``
    :param rng: random generator
    :param n_resamples: number of resamples
    :return: lower and upper end
    """
    resamples = []
    for scores in samples:
        index = rng.integers(scores.shape[1], size=(n_resamples, *scores.shape))
        resamples.append(np.take_along_axis(scores[None], index, axis=2))
    low, high = np.quantile(statistic(*resamples), [0.025, 0.975])
    return float(low), float(high)
