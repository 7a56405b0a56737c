"""Makes some runs again, and compares them with the rows and curves that are there."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.paper.experiments import Run
from benchmarks.paper.results import Results
from benchmarks.paper.runner import run_all
from benchmarks.paper.training import Result
from benchmarks.provenance import current_commit

# What a run comes to: all of its row but time and provenance
OUTCOME = ("timesteps", "steps", "diverged", "episodes", "score")
PROVENANCE = ("commit", "versions", "processor", "blas", "cpu_capability", "variables")


def draw(runs: Sequence[Run], number: int, seed: int | None) -> list[Run]:
    """
    Draw runs at random.

    :param runs: the runs
    :param number: how many, without replacement
    :param seed: of the draw; ``None`` for another one each time
    :return: those, in a random order
    :raises ValueError: if there are not so many
    """
    if not 1 <= number <= len(runs):
        raise ValueError(f"number must be from 1 to {len(runs)}, as there are so many runs, but it is {number}")
    return [runs[i] for i in np.random.default_rng(seed).choice(len(runs), number, replace=False)]


def verify(results: Results, runs: Sequence[Run], jobs: int) -> bool:
    """
    Make runs again with the code that is checked out, and print which are exact.

    :param results: what is there
    :param runs: which of them
    :param jobs: number of processes
    :return: whether all are exact
    """
    print(f"Made again by commit {current_commit()}, which is checked out; each row names the commit that made it.")
    n_exact = 0
    with TemporaryDirectory() as folder:
        again = Results(Path(folder))
        failed = run_all(runs, results.load(runs[0]).row["timesteps"], again, jobs)
        for run in runs:
            if run.name in failed:
                print(f"{run.name}: FAILED")
                continue
            recorded, made = results.load(run), again.load(run)
            found = differences(recorded, made)
            n_exact += not found
            print(f"{run.name}: {'exact' if not found else 'NOT EXACT'}")
            for line in (*found, *provenance(recorded.row, made.row)):
                print(f"    {line}")
    print(f"{n_exact} of {len(runs)} are exact")
    return n_exact == len(runs)


def differences(recorded: Result, made: Result) -> list[str]:
    """
    What of a run has come out otherwise.

    :param recorded: as it is in the results
    :param made: as it was made again
    :return: a line for each number of the row, and for each curve that is not the same bit for bit
    """
    lines = [
        f"{name}: {recorded.row[name]}, again {made.row[name]}" for name in OUTCOME if recorded.row[name] != made.row[name]
    ]
    for name, curve in recorded.curves.items():
        other = made.curves[name]
        if curve.dtype == other.dtype and curve.tobytes() == other.tobytes():
            continue
        shared = min(len(curve), len(other))
        same = curve[:shared] == other[:shared]
        lines.append(f"{name}: the same up to number {shared if same.all() else int(same.argmin())} of {len(curve)}")
    return lines


def provenance(recorded: Mapping[str, str], made: Mapping[str, str]) -> list[str]:
    """
    What of the environment is not the same.

    :param recorded: the row as it is in the results; older ones record less
    :param made: the row of the run that was made again
    :return: a line for each part that differs or was not recorded
    """
    lines = []
    for name in PROVENANCE:
        before, now = (set(filter(None, row.get(name, "").split("; "))) for row in (recorded, made))
        if name not in recorded:
            lines.append(f"{name}: not recorded, now {made[name] or 'none set'}")
        elif before != now:
            old, new = ("; ".join(sorted(part)) or "none" for part in (before - now, now - before))
            lines.append(f"{name}: {old}, now {new}")
    return lines
