"""
The results on disk. Each finished run is one file, written in one piece, with its row and its curves; ``runs.csv`` has the
rows of all files, so that nothing is lost or counted twice whenever the program is killed.
"""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from benchmarks.paper.experiments import Run
from benchmarks.paper.training import Result

DEFAULT = Path(__file__).parents[1] / "results" / "table1"


class Results:
    """
    The results in a directory.

    :param directory: where they are; made if it does not exist
    """

    def __init__(self, directory: Path) -> None:
        # Processes on other machines may have another working directory
        self.directory = directory.resolve()
        self.curves = self.directory / "curves"
        self.table = self.directory / "runs.csv"
        # The row of each file, and the time of its last change
        self._rows: dict[Path, tuple[int, dict[str, Any]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Other processes do not need the rows, which may change while they are pickled
        return {**self.__dict__, "_rows": {}}

    @contextmanager
    def lock(self) -> Iterator[None]:
        """
        Keep other programs from making runs in the same directory. The lock goes with the process that holds it.

        :raises ValueError: if another one does
        """
        self.curves.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.directory / "lock", timeout=0):
                # Of runs that were killed
                for path in self.directory.rglob("*.unfinished"):
                    path.unlink()
                yield
        except Timeout:
            raise ValueError(f"Another program is making runs in {self.directory}") from None

    def rows(self) -> dict[Run, dict[str, Any]]:
        """
        The rows of the finished runs.

        :return: rows by run
        :raises ValueError: if a file cannot be read, or is not named after its run
        """
        rows = {}
        for path in sorted(self.curves.glob("*.npz")):
            changed = path.stat().st_mtime_ns
            if path not in self._rows or self._rows[path][0] != changed:
                self._rows[path] = changed, json.loads(str(_read(path, ["row"])["row"]))
            row = self._rows[path][1]
            run = Run(row["variant"], row["setting"], row["env"], row["seed"])
            if run.name != path.stem:
                raise ValueError(f"{path} has the run {run.name}: its name has been changed")
            rows[run] = row
        return rows

    def save(self, run: Run, result: Result) -> None:
        """
        Save a finished run.

        :param run: the run
        :param result: its result
        """
        with _in_one_piece(self.curves / f"{run.name}.npz", "wb") as file:
            arrays: dict[str, Any] = {"row": np.array(json.dumps(result.row)), **result.curves}
            np.savez_compressed(file, **arrays)

    def load(self, run: Run) -> Result:
        """
        Load a finished run.

        :param run: the run
        :return: its result
        """
        arrays = _read(self.curves / f"{run.name}.npz")
        return Result(json.loads(str(arrays.pop("row"))), arrays)

    def write_table(self) -> None:
        """Write the rows of all finished runs."""
        rows = sorted(self.rows().items())
        if not rows:
            return
        with _in_one_piece(self.table, "w") as file:
            # Older runs do not say which kernels they used
            names = dict.fromkeys(name for _, row in rows for name in row)
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(row for _, row in rows)

    def check_timesteps(self, timesteps: int) -> None:
        """
        Check that runs of this length belong here.

        :param timesteps: length of a run
        :raises ValueError: if there are runs of another length
        """
        for row in self.rows().values():
            if row["timesteps"] != timesteps:
                raise ValueError(
                    f"timesteps is {timesteps}, but {self.directory} has runs of {row['timesteps']}: give another --results"
                )


def _read(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays in a file: those with certain names, or all."""
    try:
        with path.open("rb") as raw, np.load(raw) as file:
            return {name: file[name] for name in names or file.files}
    # Whatever damage may lead to
    except Exception as error:
        raise ValueError(f"{path} cannot be read ({error}): if it is damaged, delete it, and `run` makes it again") from error


@contextmanager
def _in_one_piece(path: Path, mode: str) -> Iterator[Any]:
    """A file to write, which takes its place when it is complete and on the disk."""
    file = NamedTemporaryFile(mode, dir=path.parent, prefix=path.stem, suffix=".unfinished", delete=False)  # noqa: SIM115
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
    except BaseException:
        os.unlink(file.name)
        raise
