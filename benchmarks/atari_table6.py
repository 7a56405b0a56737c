"""
The whole of Table 6, for a cluster: PPO, A2C and ACER in 49 games, three seeds of 10 million timesteps each.

    pip install -c constraints.txt -e ".[benchmarks,atari]" ray
    python -m benchmarks.atari_table6 --backend ray     # runs what is missing in the results, then reports
    python -m benchmarks.atari_table6 --report          # reports only

Runs are those of benchmarks/atari.py, and are appended to benchmarks/results/atari_table6.csv as they end. The replay memory
of a run of ACER takes 12 GB.
"""

from functools import partial
from pathlib import Path

from benchmarks import atari, runs
from benchmarks.minatar import PUBLISHED
from benchmarks.paper import wins

RESULTS = Path(__file__).parent / "results" / "atari_table6.csv"
TIMESTEPS = 10_000_000
PLANNED = [(algorithm, game, seed) for seed in atari.SEEDS for game in wins.table6() for algorithm in PUBLISHED]


def report(results: Path = RESULTS) -> None:
    """Print the numbers of games won by both criteria of Table 2, once all runs are there."""
    if runs.missing(results, PLANNED):
        return
    rows = runs.load(results)
    for criterion in wins.Criteria._fields:
        of_games = runs.scores(rows, criterion)
        means = {game: {name: round(float(own.mean()), 1) for name, own in of_games[game].items()} for game in of_games}
        print(criterion, *wins.count_wins(means))


def main() -> None:
    """Run and report."""
    runs.command(__doc__, RESULTS, partial(atari.train, timesteps=TIMESTEPS), PLANNED, report)


if __name__ == "__main__":
    main()
