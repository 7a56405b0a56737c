"""
The results on disk. Each finished run is one file, written in one piece, with its row and its curves; ``runs.csv`` has the
rows of all files, so that nothing is lost or counted twice whenever the program is killed.
"""

import csv
import json
import os
from pathlib import Path

import numpy as np

from benchmarks.paper.experiments import Run
from benchmarks.paper.training import Result

DEFAULT = Path(__file__).parents[1] / "results" / "table1"


class Results:
    """
    The results in a directory.

    :param directory: where they are; made if it does not exist
    """

    def __init__(self, directory: Path) -> None:
        self.curves = directory / "curves"
        self.table = directory / "runs.csv"

    def done(self) -> set[str]:
        """The names of the finished runs."""
        return {path.stem for path in self.curves.glob("*.npz")}

    def save(self, run: Run, result: Result) -> None:
        """
        Save a finished run.

        :param run: the run
        :param result: its result
        """
        self.curves.mkdir(parents=True, exist_ok=True)
        unfinished = self.curves / f"{run.name}.unfinished"
        with unfinished.open("wb") as file:
            arrays = {"row": np.array(json.dumps(result.row)), **result.curves}
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        os.replace(unfinished, self.curves / f"{run.name}.npz")

    def load(self, run: Run) -> Result:
        """
        Load a finished run.

        :param run: the run
        :return: its result
        """
        with np.load(self.curves / f"{run.name}.npz") as file:
            arrays = {name: file[name] for name in file.files}
        return Result(json.loads(str(arrays.pop("row"))), arrays)

    def write_table(self) -> None:
        """Write the rows of all finished runs."""
        rows = []
        for path in self.curves.glob("*.npz"):
            with np.load(path) as file:
                rows.append(json.loads(str(file["row"])))
        if not rows:
            return
        rows.sort(key=lambda row: (row["variant"], row["setting"], row["env"], row["seed"]))
        unfinished = self.table.with_suffix(".unfinished")
        with unfinished.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(unfinished, self.table)

    def check_timesteps(self, timesteps: int) -> None:
        """
        Check that runs of this length belong here.

        :param timesteps: length of a run
        :raises ValueError: if there are runs of another length
        """
        for row in self.read_table().values():
            if int(row["timesteps"]) != timesteps:
                raise ValueError(
                    f"timesteps is {timesteps}, but {self.table} has runs of {row['timesteps']}: give another --results"
                )

    def read_table(self) -> dict[Run, dict[str, str]]:
        """The rows of ``runs.csv`` by run."""
        if not self.table.is_file():
            return {}
        with self.table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return {Run(row["variant"], row["setting"], row["env"], int(row["seed"])): row for row in rows}
