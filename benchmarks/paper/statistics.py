"""
Statistics of normalised scores over several tasks. Scores have shape ``(n_tasks, n_runs)``; each function is pure, and what is
random takes a generator. After Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice,
https://arxiv.org/abs/2108.13264.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats


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
    The mean of the middle half of the runs of all tasks together, without the lowest and the highest quarter. Runs on its
    edges count in part, so that any number of them has the same meaning.

    :param scores: shape ``(..., n_tasks, n_runs)``
    :return: the means, shape ``(...)``
    """
    scores = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    edges = np.linspace(0, 1, scores.shape[-1] + 1).clip(0.25, 0.75)
    return scores @ np.diff(edges) / 0.5


def median(scores: np.ndarray) -> np.ndarray:
    """
    The median of all runs.

    :param scores: shape ``(..., n_tasks, n_runs)``
    :return: the medians, shape ``(...)``
    """
    return np.median(scores, axis=(-2, -1))


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
) -> tuple[np.ndarray, np.ndarray]:
    """
    95% intervals by the stratified bootstrap: runs are drawn with replacement within each task, and the interval lies between
    the percentiles of the statistic. One run less than there are is drawn, so that the variance is right where the statistic
    is near to a mean (Rao and Wu 1988); of three runs, draws of three would have two thirds of it. With so few runs, the
    intervals are rough and somewhat too narrow.

    :param statistic: a function of scores with leading dimensions, which may have trailing ones
    :param samples: its arguments, each of shape ``(n_tasks, n_runs)``
    :param rng: random generator
    :param n_resamples: number of resamples
    :return: lower and upper ends, of the shape of the statistic
    """
    resamples = []
    for scores in samples:
        n_tasks, n_runs = scores.shape
        index = rng.integers(n_runs, size=(n_resamples, n_tasks, max(n_runs - 1, 1)))
        resamples.append(np.take_along_axis(scores[None], index, axis=2))
    low, high = np.quantile(statistic(*resamples), [0.025, 0.975], axis=0)
    return low, high


def difference(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """
    The mean of some runs minus that of others.

    :param scores: shape ``(..., n_tasks, n_runs)``
    :param others: shape ``(..., n_tasks, n_other_runs)``
    :return: the differences, shape ``(...)``
    """
    return mean(scores) - mean(others)


def standard_error(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """
    The standard error of ``difference``, from the variances within each task.

    :param scores: shape ``(..., n_tasks, n_runs)``
    :param others: shape ``(..., n_tasks, n_other_runs)``
    :return: the errors, shape ``(...)``
    """
    variances = [runs.var(axis=-1, ddof=1).sum(axis=-1) / runs.shape[-1] for runs in (scores, others)]
    return np.sqrt(sum(variances)) / scores.shape[-2]


def _error_and_freedom(samples: Sequence[np.ndarray]) -> tuple[float, float]:
    """
    The standard error of a mean, or of ``difference``, and its degrees of freedom, where each task of each sample has a
    variance of its own (Welch 1947, Satterthwaite 1946).
    """
    variances = [(runs.var(axis=1, ddof=1) / runs.shape[1], runs.shape[1] - 1) for runs in samples]
    total = sum(v.sum() for v, _ in variances)
    if total == 0:
        return 0.0, np.inf
    return np.sqrt(total) / len(samples[0]), total**2 / sum((v**2).sum() / n for v, n in variances)


def half_width(*samples: np.ndarray, level: float = 0.95) -> float:
    """
    Half the width of the interval of a mean, or of ``difference``: Student's t, see ``_error_and_freedom``.

    :param samples: one or two arrays of shape ``(n_tasks, n_runs)``
    :param level: of confidence
    :return: half the width; 0 if all runs of each task are alike
    """
    error, freedom = _error_and_freedom(samples)
    return float(stats.t.ppf((1 + level) / 2, freedom) * error)


def welch_interval(scores: np.ndarray, others: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """
    The difference of the means in a single task, and its interval.

    :param scores: one for each run
    :param others: likewise
    :param level: of confidence
    :return: the difference, and the lower and the upper end
    """
    center, half = float(scores.mean() - others.mean()), half_width(scores[None], others[None], level=level)
    return center, center - half, center + half


def power(true_difference: float, scores: np.ndarray, others: np.ndarray) -> float:
    """
    The probability that a two-sided t-test at the level 0.05 finds a difference of means, if runs vary as these do.

    :param true_difference: the difference
    :param scores: shape ``(n_tasks, n_runs)``
    :param others: shape ``(n_tasks, n_other_runs)``
    :return: the probability
    """
    error, freedom = _error_and_freedom([scores, others])
    limit, shift = stats.t.ppf(0.975, freedom), true_difference / error
    return float(stats.nct.sf(limit, freedom, shift) + stats.nct.cdf(-limit, freedom, shift))


def tasks_won(scores: np.ndarray, others: np.ndarray) -> int:
    """
    In how many tasks the mean is higher.

    :param scores: shape ``(n_tasks, n_runs)``
    :param others: shape ``(n_tasks, n_other_runs)``
    :return: their number
    """
    return int((scores.mean(axis=1) > others.mean(axis=1)).sum())


def permutation_test(scores: np.ndarray, others: np.ndarray, rng: np.random.Generator, n_permutations: int = 29_999) -> float:
    """
    Whether two settings differ: if their scores have the same distribution in each task, runs of a task may change places. The
    statistic is the difference of the means by its standard error, so that it is about means, and tasks in which either is
    better do not hide each other. Where a setting varies far more than the other, p says that they differ, not that their
    means do.

    :param scores: shape ``(n_tasks, n_runs)``
    :param others: shape ``(n_tasks, n_other_runs)``
    :param rng: random generator
    :param n_permutations: number of random permutations within the tasks
    :return: two-sided p-value
    """

    def statistic(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
        # Where all runs of either setting are alike, any difference is beyond doubt
        return np.abs(difference(scores, others)) / np.maximum(standard_error(scores, others), 1e-12)

    both = np.concatenate([scores, others], axis=1)
    permuted = rng.permuted(np.broadcast_to(both, (n_permutations, *both.shape)), axis=2)
    statistics = statistic(permuted[..., : scores.shape[1]], permuted[..., scores.shape[1] :])
    # The same runs may be added up in another order
    return float((1 + (statistics >= statistic(scores, others) * (1 - 1e-9)).sum()) / (1 + n_permutations))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """
    Adjust p-values of several tests, so that the probability of a single wrong rejection among them is at most the level
    (Holm 1979).

    :param p_values: one for each test
    :return: adjusted p-values, in the same order
    """
    order = np.argsort(p_values)
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.asarray(p_values)[order] * factors), 1)
    return adjusted


def rank_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """
    Spearman's rank correlation.

    :param x: shape ``(..., n)``
    :param y: shape ``(n,)``
    :return: the correlations, shape ``(...)``
    """
    x, y = (ranks - ranks.mean(axis=-1, keepdims=True) for ranks in (stats.rankdata(x, axis=-1), stats.rankdata(y)))
    return (x * y).sum(axis=-1) / np.sqrt((x**2).sum(axis=-1) * (y**2).sum())
