import numpy as np
import pytest

from benchmarks.learning import bootstrap_difference, probability_of_improvement


def test_probability_of_improvement():
    # Of six pairs, 3 > 2 and twice 5 > 2, 5 > 4, and a tie of 2 with 2: (3 + 0.5) / 6
    assert probability_of_improvement(np.array([2.0, 3.0, 5.0]), np.array([2.0, 4.0])) == pytest.approx(3.5 / 6)


def test_bootstrap_difference():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(3, 1, 400), rng.normal(1, 1, 400)
    difference, low, high = bootstrap_difference(ours, theirs, rng)
    assert difference == pytest.approx(ours.mean() - theirs.mean())
    # The standard error of the difference of two means of 400 is sqrt(2 / 400) = 0.0707
    assert high - low == pytest.approx(2 * 1.96 * 0.0707, rel=0.1)
    assert low < difference < high
