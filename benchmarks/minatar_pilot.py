"""
The step sizes of benchmarks/minatar.py, chosen before its runs, on seeds that it does not have.

    python -m benchmarks.minatar_pilot [--jobs 2]     # runs what is missing in the results, then reports
    python -m benchmarks.minatar_pilot --report       # reports only

docs/minatar.md has the rule.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import minatar, runs
from benchmarks.paper import cells

RESULTS = Path(__file__).parent / "results" / "minatar_pilot.csv"
FACTORS = (1.0, 0.25, 4.0, 16.0, 64.0)
SEEDS = (100, 110)
TIMESTEPS = 500_000

# (algorithm, factor) by the name of the candidate
CANDIDATES = {f"{algorithm} x {factor:g}": (algorithm, factor) for algorithm in minatar.PUBLISHED for factor in FACTORS}
PLANNED = [(candidate, game, seed) for seed in SEEDS for game in minatar.GAMES for candidate in CANDIDATES]


def train(candidate: str, game: str, seed: int) -> dict[str, Any]:
    """
    A run.

    :param candidate: one of ``CANDIDATES``
    :param game: name of the game
    :param seed: the seed
    :return: a row of the results
    """
    algorithm, factor = CANDIDATES[candidate]
    return {**minatar.train(algorithm, game, seed, TIMESTEPS, factor), "algorithm": candidate}


def mean_scores(rows: Sequence[dict[str, str]]) -> dict[str, dict[str, float]]:
    """Mean return of the last 100 episodes, over the seeds, of each candidate in each game."""
    scores = runs.scores(rows, "last")
    return {game: {name: float(own.mean()) for name, own in of_game.items()} for game, of_game in scores.items()}


def choose(means: dict[str, dict[str, float]]) -> tuple[dict[str, float], dict[str, str]]:
    """
    The rule.

    :param means: mean score of each candidate in each game
    :return: normalised score of each candidate, and the candidate that is taken for each algorithm
    """
    best = {game: max(of_game.values()) for game, of_game in means.items()}
    normalized = {name: sum(means[game][name] / best[game] for game in means) / len(means) for name in CANDIDATES}
    chosen = {}
    for algorithm in minatar.PUBLISHED:
        # The first of those that are the same is the published one
        chosen[algorithm] = max((name for name, of in CANDIDATES.items() if of[0] == algorithm), key=normalized.__getitem__)
    return normalized, chosen


def table(rows: Sequence[dict[str, str]]) -> str:
    """
    The scores and the choice.

    :param rows: of the results
    :return: the table
    """
    means = mean_scores(rows)
    normalized, chosen = choose(means)
    lines = []
    for name, score in normalized.items():
        mark = " (taken)" if name in chosen.values() else ""
        lines.append([name + mark, *(f"{means[game][name]:.2f}" for game in minatar.GAMES), f"{score:.3f}"])
    return cells.table(["candidate", *minatar.GAMES, "normalised"], lines)


def report(results: Path = RESULTS) -> None:
    """Print the table, once all runs are there."""
    if not runs.missing(results, PLANNED):
        print(table(runs.load(results)))


def main() -> None:
    """Run and report."""
    runs.command(__doc__, RESULTS, train, PLANNED, report)


if __name__ == "__main__":
    main()
