"""Statistics of scores, over several tasks or in one, against numbers that are worked out by hand."""

import numpy as np
import pytest

from benchmarks.paper import statistics


def test_normalize():
    scores = np.array([[0.0, 5.0], [-10.0, 20.0]])
    normalized = statistics.normalize(scores, random=np.array([0.0, -20.0]), best=np.array([10.0, 20.0]))
    np.testing.assert_allclose(normalized, [[0, 0.5], [0.25, 1]])
    with pytest.raises(ValueError, match="best must be greater than random"):
        statistics.normalize(scores, random=np.array([0.0, 20.0]), best=np.array([10.0, 20.0]))


def test_means_and_profile():
    scores = np.array([[0.0, 0.25, 0.5, 0.5], [0.75, 1.0, 1.5, -2.0]])
    assert statistics.mean(scores) == pytest.approx(2.5 / 8)
    assert statistics.median(scores) == 0.5
    # Sorted: -2, 0, 0.25, 0.5, 0.5, 0.75, 1, 1.5; the middle half is 0.25, 0.5, 0.5, 0.75
    assert statistics.interquartile_mean(scores) == pytest.approx(0.5)
    profile = statistics.performance_profile(scores, np.array([-3.0, 0.0, 0.5, 1.5]))
    np.testing.assert_allclose(profile, [1, 6 / 8, 3 / 8, 0])
    # The middle half of 21 runs goes from 5.25 to 15.75: three quarters of the sixth, with 0.1, all with 0.2, 0.3 and 0.4, and
    # three quarters of the sixteenth, with 0.5
    scores = np.repeat([[0.0], [0.1], [0.2], [0.3], [0.4], [0.5], [0.6]], 3, axis=1)
    assert statistics.interquartile_mean(scores) == pytest.approx((0.075 + 2.7 + 0.375) / 10.5)


def test_probability_of_improvement_is_within_tasks():
    # In the first task always better; in the second one of two pairs is a tie, the other is lost
    ours, theirs = np.array([[3.0], [1.0]]), np.array([[1.0, 2.0], [1.0, 2.0]])
    assert statistics.probability_of_improvement(ours, theirs) == pytest.approx((1 + 0.25) / 2)


def test_bootstrap_is_stratified_and_reproducible():
    def interval(scores, seed=0, n_resamples=2000):
        return statistics.bootstrap(statistics.mean, [scores], np.random.default_rng(seed), n_resamples)

    # All runs of a task are alike, so only a bootstrap that mixes tasks would vary
    assert interval(np.repeat([[0.0], [1.0], [5.0]], 4, axis=1)) == (2.0, 2.0)
    # With the same seeds in both tasks, every mean would be 0.5
    assert interval(np.array([[0.0, 1.0], [1.0, 0.0]])) == (0, 1)
    scores = np.random.default_rng(1).normal(size=(4, 250))
    low, high = interval(scores)
    # The standard error of the mean of 1000 is 1 / sqrt(1000)
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(1000), rel=0.1)
    assert (low, high) == interval(scores)
    assert (low, high) != interval(scores, seed=1)
    # Variance 1 in each of 400 tasks: the mean of 3 runs in each has the deviation 1 / sqrt(1200)
    low, high = interval(np.tile([-1.0, 0.0, 1.0], (400, 1)), n_resamples=4000)
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(1200), rel=0.05)


def test_permutation_test():
    def p_value(scores, others):
        return statistics.permutation_test(np.array(scores), np.array(others), np.random.default_rng(0))

    # Of the 6 ways to part the four, 2 have the largest difference
    assert p_value([[1.0, 2.0]], [[3.0, 4.0]]) == pytest.approx(1 / 3, abs=0.02)
    assert p_value([[1.0, 2.0]], [[1.0, 2.0]]) == 1
    # Of the 20 ways to part six, 2, in each of two tasks that are far from each other
    far = [[0.0, 1.0, 2.0], [100.0, 101.0, 102.0]], [[3.0, 4.0, 5.0], [103.0, 104.0, 105.0]]
    assert p_value(*far) == pytest.approx(2 / 400, abs=0.003)
    # The first is better by 10 in one task, and worse by 9 in the other, which is more than chance
    assert p_value([[10.0, 10.1, 10.2], [0.0, 0.1, 0.2]], [[0.0, 0.1, 0.2], [9.0, 9.1, 9.2]]) < 0.02


def test_holm():
    # Smallest first: 3 * 0.01, 2 * 0.03, 1 * 0.04, and none below one before it
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    assert statistics.holm([0.9, 0.8]).tolist() == [1, 1]
    # The usual example of textbooks: 4 * 0.005, 3 * 0.01, 2 * 0.03, 0.04
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


def test_half_width_of_an_interval():
    # Deviation 1 and 4 runs on either side: the standard error is sqrt(1/4 + 1/4) = 0.7071, with 6 degrees of freedom, for
    # which tables of t have 2.447
    scores = np.array([[-1.0, 1.0, -1.0, 1.0]]) * np.sqrt(3 / 4)
    assert statistics.half_width(scores, scores) == pytest.approx(2.447 * 0.7071, abs=1e-3)
    # Only one of two tasks varies: 2 degrees of freedom, 4.303
    scores = np.array([[-1.0, 0.0, 1.0], [5.0, 5.0, 5.0]])
    assert statistics.half_width(scores) == pytest.approx(4.303 * np.sqrt(1 / 3) / 2, abs=1e-3)
    assert statistics.half_width(np.ones((2, 3))) == 0
    # One-sided: 2.920 with 2 degrees of freedom
    assert statistics.half_width(scores, level=0.9) == pytest.approx(2.920 * np.sqrt(1 / 3) / 2, abs=1e-3)


def test_power():
    # The textbook's: 17 in each of two groups, and a difference of one deviation
    scores = (np.arange(17.0) - 8)[None] / np.sqrt(25.5)
    assert statistics.power(1.0, scores, scores) == pytest.approx(0.807, abs=1e-3)
    assert statistics.power(0.0, scores, scores) == pytest.approx(0.05)


def test_tasks_won():
    # Better, worse and alike on average
    scores, others = np.array([[1.0, 4.0], [0.0, 0.0], [1.0, 3.0]]), np.array([[2.0, 2.0], [1.0, 0.0], [2.0, 2.0]])
    assert statistics.tasks_won(scores, others) == 1


def test_rank_correlation():
    # 1 - 6 * (0 + 1 + 1 + 0) / (4 * 15)
    x = np.array([[10.0, 20.0, 30.0, 40.0], [40.0, 30.0, 20.0, 10.0]])
    np.testing.assert_allclose(statistics.rank_correlation(x, np.array([1.0, 3.0, 2.0, 4.0])), [0.8, -0.8])


def test_welch_interval():
    # Variances 1 and 4, standard error sqrt(1/3 + 4/3) = 1.29099, 2.94118 degrees of freedom, of which 97.5% are below 3.21876
    # and 95% below 2.37268
    scores, others = np.array([1.0, 2, 3]), np.array([2.0, 4, 6])
    for quantile, level in ((3.21876, {}), (2.37268, {"level": 0.9})):
        expected = (-2.0, -2 - 1.29099 * quantile, -2 + 1.29099 * quantile)
        assert statistics.welch_interval(scores, others, **level) == pytest.approx(expected, rel=1e-4)
    # Where all runs have the same score
    assert statistics.welch_interval(np.ones(3), np.full(3, 0.5)) == (0.5, 0.5, 0.5)
    # The quantile of t with 2 degrees of freedom is 4.30265, the standard error 1 / sqrt(3)
    assert statistics.welch_interval(scores, np.ones(3)) == pytest.approx((1, 1 - 2.484137, 1 + 2.484137), rel=1e-5)
