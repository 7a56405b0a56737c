import pytest

from benchmarks.paper.wins import Criteria, compare, count_wins, criteria, sign_test, table6


def test_criteria():
    # 100 episodes of 3 after 50 of 0: 300 / 150
    assert criteria([0.0] * 50 + [3.0] * 100) == Criteria(training=2, last=3)
    assert criteria([1.0, 2.0, 6.0]) == (3, 3)
    with pytest.raises(ValueError, match="No episode ended"):
        criteria([])


def test_wins():
    scores = {
        "one": {"A": 1.0, "B": 2.0, "C": -1.0},
        "two": {"A": 0.0, "B": 0.0, "C": -1.0},
        "three": {"A": -3.0, "B": -3.0, "C": -2.0},
        "four": {"A": 4.0, "B": 5.0, "C": 3.0},
    }
    assert count_wins(scores) == ({"A": 0, "B": 2, "C": 1}, ["two"])
    assert compare(scores, "A", "C") == (3, 1)
    assert compare(scores, "A", "B") == (0, 2)


def test_the_papers_wins():
    assert len(table6()) == 49
    # Table 2 has 1, 28, 19 and 1
    assert count_wins(table6()) == ({"A2C": 1, "ACER": 27, "PPO": 19}, ["Pong", "Venture"])


def test_sign_test():
    # 2 (1 + 4) / 2^4
    assert sign_test(3, 1) == sign_test(1, 3) == 0.625
    # 2 / 2^5
    assert sign_test(5, 0) == 0.0625
    assert sign_test(0, 0) == 1


def test_the_papers_leads():
    # ACER's 27 games against the 20 that another wins: not more than luck
    assert sign_test(27, 20) == pytest.approx(0.38, abs=0.005)
    assert compare(table6(), "PPO", "A2C") == (40, 8)
    assert sign_test(40, 8) < 1e-5
