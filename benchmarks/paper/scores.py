"""The scores of the runs, and the constants that normalise them."""

import csv
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper.experiments import MORE_SEEDS, REFERENCES, SETTINGS, STAGES, TASKS, Run
from benchmarks.paper.results import Results
from benchmarks.paper.statistics import normalize

DATA = Path(__file__).parent / "data"
# Score of a random policy and best score of each task, once and for all, so that a score does not drift as runs are added
CONSTANTS = DATA / "normalization.csv"
# What the paper leaves open; the first of each is taken where there is but one number
RANDOM_CHOICES = {"uniform": "uniform actions", "untrained": "the policy before training"}
BEST_CHOICES = {"best_run": "the best run", "best_setting": "the best setting"}


class MissingRunsError(Exception):
    """Runs that are needed have not been made."""


class Scores:
    """
    Scores of runs, in arrays of shape ``(n_tasks, n_seeds)``.

    :param rows: the rows of the runs
    :param constants: those of the normalisation, from ``read_constants``
    :raises ValueError: if the runs are not of the same length
    """

    def __init__(self, rows: Mapping[Run, Mapping[str, Any]], constants: Mapping[str, Mapping[str, Any]]) -> None:
        lengths = {row["timesteps"] for row in rows.values()}
        if len(lengths) > 1:
            raise ValueError(f"The runs must all have the same length, but have {sorted(lengths)}")
        self.rows = rows
        self.constants = constants
        self.tasks = [env for env in TASKS if any(run.env == env for run in rows)]

    def only(self, runs: Sequence[Run]) -> "Scores":
        """
        Some of the scores.

        :param runs: which
        :return: those
        """
        return Scores({run: self.rows[run] for run in runs}, self.constants)

    def settings(self) -> list[str]:
        """
        The settings that there are as in the paper.

        :return: names, in the order of Table 1
        """
        present = {run.setting for run in self.rows if run.variant == "paper"}
        return [setting for setting in SETTINGS if setting in present]

    def runs(self, setting: str, env: str | None = None, variant: str = "paper") -> list[Run]:
        """
        The runs of a setting.

        :param setting: its name
        :param env: id of the task; ``None`` for all tasks
        :param variant: name of the variant
        :return: the runs
        """
        return [run for run in self.rows if (run.variant, run.setting) == (variant, setting) and env in (run.env, None)]

    def returns(self, setting: str, variant: str = "paper") -> np.ndarray:
        """
        The scores of a setting as they are: mean returns.

        :param setting: its name
        :param variant: name of the variant
        :return: shape ``(n_tasks, n_seeds)``
        """
        return np.array([self.returns_in(env, setting, variant) for env in self.tasks])

    def returns_in(self, env: str, setting: str, variant: str = "paper") -> np.ndarray:
        """
        The scores of a setting in a task as they are: mean returns.

        :param env: id of the task
        :param setting: name of the setting
        :param variant: name of the variant
        :return: shape ``(n_seeds,)``
        """
        return self._column("score", env, setting, variant)

    def ended_early(self, env: str, setting: str, variant: str = "paper") -> np.ndarray:
        """
        Which runs of a setting in a task ended early.

        :param env: id of the task
        :param setting: name of the setting
        :param variant: name of the variant
        :return: shape ``(n_seeds,)``
        """
        return self._column("diverged", env, setting, variant)

    def _column(self, name: str, env: str, setting: str, variant: str) -> np.ndarray:
        return np.array([self.rows[run][name] for run in self.runs(setting, env, variant)])

    def normalized(self, setting: str, variant: str = "paper", random: str = "uniform", best: str = "best_run") -> np.ndarray:
        """
        The normalised scores of a setting.

        :param setting: its name
        :param variant: name of the variant
        :param random: name in ``RANDOM_CHOICES``: what is 0
        :param best: name in ``BEST_CHOICES``: what is 1
        :return: shape ``(n_tasks, n_seeds)``
        """
        return normalize(self.returns(setting, variant), self.constant(random), self.constant(best))

    def constant(self, name: str) -> np.ndarray:
        """
        A constant of the normalisation.

        :param name: name in ``RANDOM_CHOICES`` or ``BEST_CHOICES``
        :return: its value in each task
        """
        return np.array([self.constants[env][name] for env in self.tasks])


def freeze(results: Results, path: Path, runs: Sequence[Run]) -> None:
    """
    Write the constants of the normalisation.

    :param results: the results
    :param path: the file
    :param runs: the runs of Table 1
    :raises FileExistsError: if the file exists: scores would change that have been reported
    :raises MissingRunsError: if a run has not been made
    """
    scores = Scores(rows_of(results, runs), {})
    settings = [setting for setting in scores.settings() if setting in paper_scores()]
    returns = np.array([scores.returns(setting) for setting in settings])
    best_runs, means = returns.max(axis=2), returns.mean(axis=2)
    columns = {
        "env": scores.tasks,
        **{name: [f"{mean:.4f}" for mean in scores.returns(name).mean(axis=1)] for name in REFERENCES},
        "best_run": [f"{best:.4f}" for best in best_runs.max(axis=0)],
        "best_run_of": [settings[i] for i in best_runs.argmax(axis=0)],
        "best_setting": [f"{best:.4f}" for best in means.max(axis=0)],
        "best_setting_of": [settings[i] for i in means.argmax(axis=0)],
    }
    with path.open("x", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def read_constants(path: Path) -> dict[str, dict[str, Any]]:
    """
    The constants of the normalisation.

    :param path: the file that ``freeze`` wrote
    :return: for each task, the columns by name
    :raises FileNotFoundError: if it does not exist; says how to make it
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: once all runs of Table 1 are there, `freeze` writes it")
    numbers = (*RANDOM_CHOICES, *BEST_CHOICES)
    with path.open(newline="") as file:
        return {row["env"]: {**row, **{name: float(row[name]) for name in numbers}} for row in csv.DictReader(file)}


def rows_of(results: Results, runs: Sequence[Run]) -> dict[Run, dict[str, Any]]:
    """
    The rows of some runs.

    :param results: the results
    :param runs: the runs
    :return: rows by run
    :raises MissingRunsError: if one has not been made
    """
    rows = results.rows()
    missing = [run.name for run in runs if run not in rows]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise MissingRunsError(f"{len(missing)} of {len(runs)} runs are missing: {', '.join(missing[:5])}{more}")
    return {run: rows[run] for run in runs}


def paper_scores() -> dict[str, float]:
    """Table 1 of the paper: the score of each setting."""
    with (DATA / "table1.csv").open(newline="") as file:
        return {row["setting"]: float(row["score"]) for row in csv.DictReader(file)}


class Study:
    """
    The results as far as they are complete: single runs of a part that is not are in no table but that of the parts.

    :param results: the results
    :param constants: file of the constants of the normalisation
    """

    def __init__(self, results: Results, constants: Path) -> None:
        self.results = results
        self.constants = read_constants(constants)
        self.rows = results.rows()

    def _table_1_and(self, *kinds: str) -> Scores:
        """Table 1, and those parts that are complete whose names begin like this."""
        parts = [runs for kind in kinds for name, runs in STAGES.items() if name.startswith(kind)]
        complete = [runs for runs in parts if all(run in self.rows for run in runs)]
        return Scores(rows_of(self.results, sum(complete, STAGES["table1"])), self.constants)

    @cached_property
    def table_1(self) -> Scores:
        """The scores of Table 1's runs, and of what the text mentions without numbers."""
        return self._table_1_and("log_clip")

    @cached_property
    def all_seeds(self) -> Scores:
        """Table 1 with as many seeds as each setting has."""
        return self._table_1_and("log_clip", "seeds")

    @cached_property
    def ten_seeds(self) -> Scores:
        """The scores of the settings with ten seeds."""
        scores = self.all_seeds
        settings = {run.setting for run in scores.rows if run.seed in MORE_SEEDS}
        return scores.only([run for run in scores.rows if run.setting in settings])

    @cached_property
    def details(self) -> Scores:
        """The scores with other details, and those of Table 1's runs."""
        return self._table_1_and("details")

    @cached_property
    def everything(self) -> Scores:
        """All scores."""
        return self._table_1_and("log_clip", "seeds", "details")
