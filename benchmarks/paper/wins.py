"""
Table 2: the number of games that each algorithm wins, by two criteria. Pure functions of scores.

data/table6_atari.csv is Table 6 of the paper (https://arxiv.org/abs/1707.06347): mean returns of the last 100 episodes of 40
million frames, over three trainings, in 49 games, as printed. Table 2 counts 1, 28, 19 and one tie by the same criterion:
Pong, where ACER and PPO have the same printed score, must have gone to ACER by digits that are not printed.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

TABLE6 = Path(__file__).parent / "data" / "table6_atari.csv"
# Episodes that count for the second criterion
LAST_EPISODES = 100
# Table 2: numbers of the 49 games, by the criteria below; nobody wins a tie by the second
TABLE_2 = {"training": {"A2C": 1, "ACER": 18, "PPO": 30}, "last": {"A2C": 1, "ACER": 28, "PPO": 19}}

# Score of each algorithm in each game
Scores = Mapping[str, Mapping[str, float]]


class Criteria(NamedTuple):
    """
    The scores of a training by the two criteria of section 6.4.

    :param training: mean return of all episodes, which favours fast learning
    :param last: mean return of the last 100 episodes, which favours final performance
    """

    training: float
    last: float


class Wins(NamedTuple):
    """
    A row of Table 2.

    :param counts: number of games that each algorithm wins
    :param ties: names of the games that nobody wins alone
    """

    counts: dict[str, int]
    ties: list[str]


def criteria(returns: Sequence[float]) -> Criteria:
    """
    Score a training.

    :param returns: of its episodes, in the order in which they ended
    :return: the scores by both criteria
    :raises ValueError: if no episode ended
    """
    if not len(returns):
        raise ValueError("No episode ended, so there is no score")
    return Criteria(float(np.mean(returns)), float(np.mean(returns[-LAST_EPISODES:])))


def count_wins(scores: Scores) -> Wins:
    """
    Count the games that each algorithm wins.

    :param scores: score of each algorithm in each game, which is the mean over the trainings
    :return: the numbers of games, and the ties
    """
    counts = {algorithm: 0 for of_game in scores.values() for algorithm in of_game}
    ties = []
    for game, of_game in scores.items():
        best = max(of_game.values())
        first, *others = [algorithm for algorithm, score in of_game.items() if score == best]
        if others:
            ties.append(game)
        else:
            counts[first] += 1
    return Wins(counts, ties)


def compare(scores: Scores, algorithm: str, other: str) -> tuple[int, int]:
    """
    Compare two algorithms, as if there were no third.

    :param scores: score of each algorithm in each game
    :param algorithm: name of one
    :param other: name of the other
    :return: number of games in which the one is better, and the other
    """
    counts, _ = count_wins({game: {name: s[name] for name in (algorithm, other)} for game, s in scores.items()})
    return counts[algorithm], counts[other]


def sign_test(wins: int, losses: int) -> float:
    """
    Whether a lead is more than luck: if either were as likely to win a game, a lead as large would have this probability.

    :param wins: number of games won; ties do not count
    :param losses: number of games lost
    :return: two-sided p-value
    """
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def table6() -> dict[str, dict[str, float]]:
    """
    Table 6 of the paper.

    :return: score of A2C, ACER and PPO in each of 49 games
    """
    with TABLE6.open(newline="") as file:
        return {row.pop("game"): {name: float(score) for name, score in row.items()} for row in csv.DictReader(file)}
