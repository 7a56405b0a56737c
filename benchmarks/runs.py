"""Runs whose results are kept as they end, so that an interrupted call goes on where it was."""

import argparse
import csv
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from benchmarks.provenance import current_commit

KEY = ("algorithm", "env", "seed")
# The values of KEY
Run = tuple[str, str, int]


def load(path: Path) -> list[dict[str, str]]:
    """
    The rows so far.

    :param path: the file of the results
    :return: a row for each run
    :raises ValueError: if a line is not whole, as where a call was killed while it wrote, or if a run is there twice
    """
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    seen = set()
    for number, row in enumerate(rows, start=2):
        key = tuple(row.get(name) for name in KEY)
        if None in row or None in row.values() or key in seen:
            raise ValueError(f"{path}, line {number}, is not whole, or its run is there twice: delete it")
        seen.add(key)
    return rows


def scores(rows: Iterable[dict[str, str]], column: str = "score") -> dict[str, dict[str, np.ndarray]]:
    """
    Scores by task and algorithm.

    :param rows: as ``load`` returns them
    :param column: where the score is; rows where it is empty are left out
    :return: of each task, of each algorithm, the scores of its runs, shape ``(n_runs,)``
    """
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row[column]:
            found.setdefault(row["env"], {}).setdefault(row["algorithm"], []).append(float(row[column]))
    return {env: {name: np.array(own) for name, own in of_env.items()} for env, of_env in found.items()}


def missing(path: Path, planned: Sequence[Run]) -> list[Run]:
    """
    The runs that are not in the results.

    :param path: the file of the results
    :param planned: all runs
    :return: those, in the same order
    """
    done = {tuple(row[name] for name in KEY) for row in load(path)}
    return [run for run in planned if tuple(map(str, run)) not in done]


def _attempt(train: Callable[..., Any], run: Sequence[Any]) -> Any:
    """What a run returns, or, as text, how it failed."""
    try:
        return train(*run)
    # Whatever it is: the others go on
    except Exception:
        return f"{', '.join(map(str, run))} failed:\n{traceback.format_exc()}"


def finished(train: Callable[..., Any], planned: Iterable[Sequence[Any]], jobs: int, backend: str = "joblib") -> Iterator[Any]:
    """
    Make runs side by side. The run of a killed process is lost, and ends the iteration with an error.

    :param train: makes a run
    :param planned: its arguments, for each run
    :param jobs: number of processes; -1 for one for each core
    :param backend: ``joblib`` for processes, ``ray`` for a cluster, whose size counts instead of ``jobs``
    :return: as each run ends, what ``train`` returns, or, as text, how it failed
    """
    if backend == "ray":
        # joblib's backend for Ray returns nothing before all have ended
        import ray

        attempt = ray.remote(_attempt)
        pending: list[Any] = [attempt.remote(train, run) for run in planned]
        while pending:
            ended, pending = ray.wait(pending)
            yield from ray.get(ended)
    else:
        from joblib import Parallel, delayed

        yield from Parallel(n_jobs=jobs, return_as="generator_unordered")(delayed(_attempt)(train, run) for run in planned)


def run_missing(
    path: Path,
    train: Callable[..., dict[str, Any]],
    planned: Sequence[Run],
    jobs: int,
    backend: str = "joblib",
) -> None:
    """
    Make the runs that are not in the results, and append each, with the commit, as it ends. One that fails is reported, and
    remains missing.

    :param path: the file of the results
    :param train: makes the row of a run of an algorithm, a task and a seed
    :param planned: all runs
    :param jobs: as in ``finished``
    :param backend: likewise
    :raises ValueError: if another program adds to the results, or if rows have other columns than those that are there
    """
    path.parent.mkdir(exist_ok=True)
    # That of the code that runs: others may come meanwhile
    commit = current_commit()
    try:
        with FileLock(path.with_suffix(".lock"), timeout=0):
            for row in finished(train, missing(path, planned), jobs, backend):
                if isinstance(row, str):
                    print(row, file=sys.stderr, flush=True)
                    continue
                _append(path, {**row, "commit": commit})
                print(*row.values(), flush=True)
    except Timeout:
        raise ValueError(f"Another program adds to {path}") from None


def _append(path: Path, row: dict[str, Any]) -> None:
    rows = load(path)
    if rows and rows[0].keys() != row.keys():
        raise ValueError(f"{path} has the columns {', '.join(rows[0])}, but new rows have {', '.join(row)}")
    is_new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0] if rows else row, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def command(
    description: str | None,
    path: Path,
    train: Callable[..., dict[str, Any]],
    planned: Sequence[Run],
    report: Callable[[Path], None],
) -> None:
    """
    The command of a benchmark: make the runs that are missing, report, and say how many are missing still.

    :param description: of the command
    :param path: the file of the results, unless the command line names another
    :param train: as in ``run_missing``
    :param planned: all runs
    :param report: prints the results in a file
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="number of processes")
    parser.add_argument("--backend", choices=("joblib", "ray"), default="joblib", help="processes, or a cluster")
    parser.add_argument("--results", type=Path, default=path, help="file of the results; another one begins anew")
    parser.add_argument("--report", action="store_true", help="only report")
    args = parser.parse_args()
    if not args.report:
        run_missing(args.results, train, planned, args.jobs, args.backend)
    report(args.results)
    if n_missing := len(missing(args.results, planned)):
        print(f"\n{n_missing} of {len(planned)} runs are missing: the same command without --report makes them")
        sys.exit(1)
