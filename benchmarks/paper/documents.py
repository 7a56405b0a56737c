"""The documents that have tables of the study."""

import re
from pathlib import Path

from benchmarks.paper import figure3_report, tables
from benchmarks.paper.tables import Study

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs" / "figures"
TABLE_1_PAGE = ROOT / "docs" / "paper.md"
FIGURE_3_PAGE = ROOT / "docs" / "figure3.md"
DOCUMENTS = (TABLE_1_PAGE, FIGURE_3_PAGE, ROOT / "README.md")
TABLES = {**tables.TABLES, **figure3_report.TABLES}
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
