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
        means: dict[str, dict[str, float]] = {}
        for game in wins.table6():
            for name in PUBLISHED:
                own = [float(row[criterion]) for row in rows if (row["env"], row["algorithm"]) == (game, name)]
                means.setdefault(game, {})[name] = round(sum(own) / len(own), 1)
        print(criterion, *wins.count_wins(means))


def main() -> None:
    """Run and report."""
    runs.command(__doc__, RESULTS, partial(atari.train, timesteps=TIMESTEPS), PLANNED, report)


if __name__ == "__main__":
    main()
