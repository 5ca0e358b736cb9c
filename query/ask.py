"""Implementation of `gradstore query`: from images to a table and a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from query.answering import Answering
from query.checks import require_collected
from query.collection import collected
from query.engines import engine_of
from query.question import opened, questions
from query.results.files import Result
from query.results.folder import claimed
from query.results.pictures import pictures
from query.results.report import Section, write_report
from query.results.summary import summary_text
from query.results.table import write_table
from query.results.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradstore.flags.query import QueryConfig
    from indexer import ExactEngine, SearchIndex
    from query.question import Question
    from query.results.pictures import Pictures

# The report is for viewing, so it is limited to this many pictures and ranks per side of a query.
_SHOWN_PICTURES: Final = 4000
_SHOWN_RANKS: Final = 100


def ask(config: QueryConfig) -> Result:
    """Answer a question: collect the queries' rows, search under each measure, write the answers.

    Resumes if interrupted.

    Raises:
        GradstoreError: if the inputs do not match. Query rows already collected are kept.
    """
    out = Path(config.out)
    # Open stores, filters and weights; report every cheap mistake.
    question = opened(config)
    store = question.store
    engines = [
        engine_of(store, name, question.etas, matched=config.matched) for name in config.measures
    ]
    train = pictures(store)
    if question.asked is not None:
        for engine in engines:
            require_collected(question.asked, engine.features)
            engine.features.require_matching(store, question.asked)
    with claimed(out, config, "query.yaml"):
        return _answered(question, engines, train, out)


def _answered(
    question: Question,
    engines: Sequence[SearchIndex | ExactEngine],
    train: Pictures | None,
    out: Path,
) -> Result:
    config, store = question.config, question.store

    # Collect the queries' gradients.
    rows, images = collected(question, out)
    queries = questions(rows, config.mean_by, config.minus)

    # Measure, search and explain in blocks; each finished block is kept.
    ranks = min(config.k, _SHOWN_RANKS)
    shown = max(1, _SHOWN_PICTURES // (2 * ranks * len(engines)))
    answering = Answering(question, engines, queries, out / "blocks")
    answering.run(shown)

    # Write the table of all answers and the report of the first ones.
    blocks, tally = answering.blocks, Tally(store, queries)
    schema = blocks.schema()
    for table in blocks.tables():
        tally.add(table)
    file, report = out / f"results.{config.format}", out / "report.html"
    write_table(blocks.tables(), file, schema)
    notes = [config.filter_text()]
    if shown < len(queries) or ranks < config.k:
        notes.append(
            f"The first {min(shown, len(queries)):,} of {len(queries):,} queries are shown, and "
            f"{ranks} samples on each side; {file.name} has them all."
        )
    lines = tally.lines("Queries")
    section = Section(
        "Queries", answering.first(shown, ranks), images, " ".join(filter(None, notes))
    )
    title = f"{len(queries):,} queries of {store.name}"
    write_report(report, title, [section], train, lines=lines)
    blocks.remove()
    return Result(file, report, summary_text(lines))
