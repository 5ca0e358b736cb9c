"""Files of an answer: a table of all results, and a report of the first queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from query.results.report import Section, summary, write_report
from query.results.summary import summary_text
from query.results.table import to_table, write_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from query.results.answer import Answer
    from query.results.pictures import Pictures


@dataclass(frozen=True)
class Result:
    """Paths of the written files, and a short table to print.

    Attributes:
        table: path of the Parquet table.
        report: path of the HTML page.
        text: the summary.
    """

    table: Path
    report: Path
    text: str


def write_answers(
    out: Path, title: str, sections: Sequence[Section], train: Pictures | None
) -> Result:
    """Write `results.parquet` and `report.html` into `out`."""
    answers: list[Answer] = [answer for section in sections for answer in section.answers]
    table, report = out / "results.parquet", out / "report.html"
    rows = to_table(answers)
    write_table(rows, table, rows.schema)
    write_report(report, title, sections, train)
    return Result(table, report, summary_text(summary(sections)))
