"""`gradstore query`: from images to a table and a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from gradstore.config import DatasetSpec
from gradstore.errors import ConfigError, DatasetError, QueryError
from gradstore.reader import open_store
from gradstore.spec import EventSpec
from indexer import index_path, open_index
from query.engine import Answer, collect_queries, search, to_table
from query.report import Section, summary, write_report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradstore.collect import Samples
    from gradstore.reader import Store
    from query.config import QueryConfig


@dataclass(frozen=True)
class Result:
    """Where answers were written, and a short table of them to print.

    Attributes:
        table: the Parquet table.
        report: the HTML page.
        text: the summary.
    """

    table: Path
    report: Path
    text: str


def ask(config: QueryConfig) -> Result:
    """Collect the queries' rows, search under each measure, and write table and report.

    Raises:
        GradstoreError: if anything does not fit. Query rows that were collected stay.
    """
    store = open_store(config.store)
    if config.k > store.layout.samples:
        raise QueryError(
            f"k is {config.k}, but {store.path} holds {store.layout.samples} samples. Use --k "
            f"{store.layout.samples} or fewer."
        )
    # What is cheap and can be wrong comes before what takes long.
    indexes = [
        open_index(index_path(store, measure), store, measure) for measure in config.measures
    ]
    out = Path(config.out)
    if out.exists():
        raise ConfigError(f"{out} exists; nothing was changed. Choose another --out or move it.")
    train = stored_samples(store)
    if config.queries is not None:
        queries = open_store(config.queries)
        images = stored_samples(queries)
    else:
        images = _images(config, store)
    out.mkdir(parents=True)
    (out / "query.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    if config.queries is None:
        queries = collect_queries(
            store,
            images,
            out / "queries.gradstore",
            events=EventSpec(
                events="planned",
                timesteps=config.timesteps,
                draws=config.draws,
                event_seed=config.event_seed,
            ),
            checkpoints=config.checkpoints,
            batch_size=config.batch_size,
            memory=config.memory,
            device=config.device,
            config=config.model_dump(mode="json"),
        )
    answers = [search(index, queries, config.k) for index in indexes]
    title = f"{len(images)} queries of {store.path.name}"
    return write_answers(out, title, [Section("Queries", answers, images)], train)


def write_answers(out: Path, title: str, sections: Sequence[Section], train: Samples) -> Result:
    """Write `results.parquet` and `report.html` into `out`."""
    import pyarrow.parquet as pq

    answers: list[Answer] = [answer for section in sections for answer in section.answers]
    table, report = out / "results.parquet", out / "report.html"
    pq.write_table(to_table(answers), table)
    write_report(report, title, sections, train)
    return Result(table, report, summary_text(sections))


def summary_text(sections: Sequence[Section]) -> str:
    """The summary as a plain text table."""
    headings = {
        "section": "queries",
        "measure": "measure",
        "share": "same label",
        "chance": "chance",
        "distinctness": "distinct",
    }
    rows = [headings, *summary(sections)]
    widths = {name: max(len(row[name]) for row in rows) for name in headings}
    return "\n".join("  ".join(row[name].ljust(widths[name]) for name in headings) for row in rows)


def stored_samples(store: Store) -> Samples:
    """The samples that a store was made from, loaded again as its configuration says.

    Raises:
        DatasetError: if it was made from Python, or the dataset is not what it was.
    """
    from gradstore.collect import Samples

    config: dict[str, Any] = store.spec.made_by.get("config") or {}
    try:
        spec = DatasetSpec.model_validate(
            {name: config[name] for name in DatasetSpec.model_fields if name in config}
        )
    except ValidationError as error:
        raise DatasetError(
            f"{store.path} does not say which dataset it was made from: it was collected from "
            "Python. Query it from Python too: query.search and query.write_report."
        ) from error
    samples = Samples.from_spec(spec)
    store.manifest.require_same(samples.manifest, store=str(store.path))
    return samples


def _images(config: QueryConfig, store: Store) -> Samples:
    from gradstore.collect import Samples, generate

    if not config.generate:
        return Samples.from_spec(config)
    last = Path((config.checkpoints or [c.path for c in store.spec.checkpoints])[-1])
    images = generate(last, config.generate, seed=config.generate_seed, device=config.device)
    return Samples(images, ids=[f"generated-{number:04d}" for number in range(config.generate)])
