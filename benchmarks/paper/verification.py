"""Makes some runs again, and compares them with the rows and curves that are there."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks import runs as in_parallel
from benchmarks.paper.experiments import Run, command
from benchmarks.paper.results import Results
from benchmarks.paper.training import Result

ROOT = Path(__file__).parents[2]

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
    Make runs again, each by the code of the commit that its row names, and print which are exact.

    :param results: what is there
    :param runs: which of them
    :param jobs: number of processes
    :return: whether all are exact
    :raises ValueError: if a row names no commit, or changes that have not been committed
    """
    rows = results.rows()
    for run in runs:
        commit = rows[run]["commit"]
        if commit == "unknown" or commit.endswith("+"):
            raise ValueError(f"{run.name} cannot be made again by its own code, as its commit is {commit}")
    n_exact = 0
    with TemporaryDirectory() as folder:
        planned = [(run, rows[run], Path(folder) / run.name) for run in runs]
        for ended in in_parallel.finished(make_again, planned, jobs):
            if isinstance(ended, str):
                print(ended, file=sys.stderr)
                continue
            run, made = ended
            recorded = results.load(run)
            found = differences(recorded, made)
            n_exact += not found
            print(f"{run.name}: {'exact' if not found else 'NOT EXACT'}")
            for line in (*found, *provenance(recorded.row, made.row)):
                print(f"    {line}")
    print(f"{n_exact} of {len(runs)} are exact")
    return n_exact == len(runs)


def make_again(run: Run, row: Mapping[str, Any], folder: Path) -> tuple[Run, Result]:
    """
    Make a run by the code of its own commit, with the command that ``commands`` prints for it.

    :param run: the run
    :param row: its row
    :param folder: where a clone of the repository goes, and the result
    :return: the run and its result
    :raises RuntimeError: if that fails
    """
    clone = folder / "clone"
    subprocess.run(["git", "clone", "--quiet", "--shared", "--no-checkout", ROOT, clone], check=True)
    variables = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    again = f"{command(run, row)} --jobs 1"
    process = subprocess.run(again, shell=True, cwd=clone, env=variables, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{again}\n{process.stderr}")
    return run, Results(folder / "again").load(run)


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

    :param recorded: the row as it is in the results
    :param made: the row of the run that was made again
    :return: a line for each part that differs, and one for those that the code of older rows does not record
    """
    lines, unknown = [], []
    for name in PROVENANCE:
        if name not in recorded:
            unknown.append(name)
            continue
        before, now = (set(filter(None, row[name].split("; "))) for row in (recorded, made))
        if before != now:
            old, new = ("; ".join(sorted(part)) or "none" for part in (before - now, now - before))
            lines.append(f"{name}: {old}, now {new}")
    return [*lines, f"not recorded: {', '.join(unknown)}"] if unknown else lines
