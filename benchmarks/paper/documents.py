"""The documents that have tables of the study, and of MinAtar."""

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks import minatar, minatar_pilot, runs
from benchmarks.paper import figure3_report, tables
from benchmarks.paper.scores import MissingRunsError, Study

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs" / "figures"
TABLE_1_PAGE = ROOT / "docs" / "paper.md"
FIGURE_3_PAGE = ROOT / "docs" / "figure3.md"
TABLE_2_PAGE = ROOT / "docs" / "minatar.md"
DOCUMENTS = (TABLE_1_PAGE, TABLE_2_PAGE, FIGURE_3_PAGE, ROOT / "README.md")


def _minatar() -> list[dict[str, str]]:
    if rows := minatar.complete_rows():
        return rows
    raise MissingRunsError("Runs of each algorithm are missing: python -m benchmarks.minatar")


TABLES: dict[str, Callable[[Study], str]] = {
    **tables.TABLES,
    **figure3_report.TABLES,
    # Results of their own
    "minatar_wins": lambda _: minatar.wins_table(_minatar()),
    "minatar_training": lambda _: minatar.scores_table(_minatar(), "training"),
    "minatar_training_leads": lambda _: minatar.leads(_minatar(), "training"),
    "minatar_last": lambda _: minatar.scores_table(_minatar(), "last"),
    "minatar_last_leads": lambda _: minatar.leads(_minatar(), "last"),
    "minatar_pilot": lambda _: minatar_pilot.table(runs.load(minatar_pilot.RESULTS)),
}
# What lies between these two comments of a document is the table of that name
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def with_tables(text: str, study: Study) -> str:
    """
    Put the tables of the results in a document.

    :param text: the document
    :param study: the results
    :return: the document with those tables
    """
    return MARKED.sub(lambda match: f"{match[1]}\n{TABLES[match[2]](study)}\n\n{match[3]}", text)
