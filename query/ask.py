"""`gradstore query`: from images to a table and a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gradstore.collect.models.folders import checkpoint_folders
from gradstore.config import DatasetSpec
from gradstore.errors import QueryError
from gradstore.progress import progress
from gradstore.store.format.spec import EventSpec
from gradstore.store.opening import open_store
from indexer import ExactEngine, measure_of
from indexer.exact.ranking import require_k
from indexer.feature import checked_etas
from indexer.measure import QuerySide
from query.blocks import Blocks, block_size, made_from
from query.checks import require_averaged, require_collected, require_comparable
from query.collection import collect_queries
from query.engines import engine_of, fitted
from query.filters import chosen
from query.queries import Queries
from query.results.folder import claim, require_free
from query.results.pictures import pictures
from query.results.report import Section, summary, write_report
from query.results.summary import summary_text
from query.results.table import to_table, write_table
from query.results.tally import Tally
from query.searching import search
from query.setting import FAST
from query.true_influence import Sources, require_rankable, rerank

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from gradstore.store.reader import Store
    from indexer import SearchIndex
    from query.config import QueryConfig
    from query.results.answer import Answer
    from query.results.pictures import Pictures


# A report is a page to look at: of so many pictures, and so many on each side of a query.
_SHOWN_PICTURES: Final = 2000

_SHOWN_RANKS: Final = 100


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
    out = Path(config.out)
    store, keep, etas, asked = _checked(config)
    from gradstore.collect import Samples

    engines = [engine_of(store, name, etas, matched=config.matched) for name in config.measures]
    train = pictures(store)
    if asked is not None:
        for engine in engines:
            require_collected(asked, engine.features)
            engine.features.require_matching(store, asked)
    images = Samples.from_spec(config) if config.dataset else None
    shown: Pictures | None
    claim(out, config, "query.yaml")
    if asked is not None:
        queries, shown = asked, pictures(asked)
    else:
        spec: DatasetSpec = config
        if images is None:
            spec = _generated(config, store, out / "generated")
            images = Samples.from_spec(spec)
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
            etas=etas,
            checkpoints=config.checkpoints,
            batch_size=config.batch_size,
            memory=config.memory,
            device=config.device,
            config=spec.recorded(),
        )
        shown = images
    queries_asked = questions(queries, config.mean_by, config.minus)
    return _answer(config, out, queries_asked, engines, keep=keep, images=(shown, train))


def _checked(
    config: QueryConfig,
) -> tuple[Store, NDArray[np.int64] | None, Sequence[float] | None, Store | None]:
    """Raise what is cheap to tell, before what takes long to import or to do.

    Returns:
        The training store, the numbers of the samples to search, the checkpoint weights, and the
        query store, if there is one already.
    """
    for name in config.measures:
        measure_of(name)
    require_free(Path(config.out), config, "query.yaml")
    store = open_store(config.store, skip_unsealed=config.skip_unsealed)
    keep = chosen(store, where=config.where(), ids=config.ids)
    require_k(config.k, store, keep)
    etas = FAST.etas(store.etas) if config.fast else config.etas
    checked_etas(store, etas)
    store.require_complete()
    if config.matched and config.queries is None and config.timesteps != store.slots:
        raise QueryError(
            f"{store.location} has {store.slots} timesteps per sample, and the queries would have "
            f"{config.timesteps}: they cannot be matched. Use --timesteps {store.slots}, or leave "
            "--matched out."
        )
    if config.rerank:
        require_rankable(config.measures, store)
    for measure in map(measure_of, config.measures):
        if isinstance(measure, QuerySide):
            require_averaged(measure, matched=config.matched)
    if config.dataset:
        config.require_there()
    if config.queries is None:
        folders = config.checkpoints or [one.path for one in store.spec.checkpoints]
        if len(checkpoint_folders(folders)) != store.checkpoints:
            raise QueryError(
                f"{store.location} has {store.checkpoints} checkpoints, and --checkpoints names "
                f"{len(checkpoint_folders(folders))}. Name those that the store was made from."
            )
    asked = open_store(config.queries) if config.queries else None
    if asked is not None:
        require_comparable(store, asked)
        questions(asked, config.mean_by, config.minus)
    elif config.mean_by not in {None, "label", *config.metadata_columns}:
        raise QueryError(
            f"the images would have no column {config.mean_by!r} to take means by: beside label, "
            "columns are kept that --metadata-columns names."
        )
    return store, keep, etas, asked


def _answer(
    config: QueryConfig,
    out: Path,
    queries: Queries,
    engines: Sequence[SearchIndex | ExactEngine],
    *,
    keep: NDArray[np.int64] | None,
    images: tuple[Pictures | None, Pictures | None],
) -> Result:
    """Search block by block; write the table of all, and the report of the first."""
    left = engines[0].store.samples if keep is None else len(keep)
    most = min(left, max(config.k, config.rerank))
    sizes = [block_size(engine, most) for engine in engines]
    measures = [measure_of(name) for name in config.measures]
    origin = [
        made_from(engine, queries, name, keep=keep)
        for name, engine in zip(config.measures, engines, strict=True)
    ]
    how = {"k": config.k, "most": most, "rerank": config.rerank, "sizes": sizes}
    blocks = Blocks(out / "blocks", {"answers": origin, **how})
    missing = [
        (place, start)
        for place, size in enumerate(sizes)
        for start in range(0, len(queries), size)
        if not blocks.has(place, start)
    ]
    ranks = min(config.k, _SHOWN_RANKS)
    count = max(1, _SHOWN_PICTURES // (2 * ranks * len(measures)))
    first: dict[int, Answer] = {}

    def answered(place: int, part: Queries) -> Answer:
        # Fitted when it is needed, and once: the preconditioner takes a pass over the store.
        measures[place] = fitted(measures[place], engines[place].store)
        found = search(engines[place], part, most, measure=measures[place], keep=keep)
        if not config.rerank:
            return found
        return rerank(
            found,
            engines[place].features,
            config.k,
            Sources(checkpoints=config.checkpoints),
            batch_size=config.batch_size,
            memory=config.memory,
            device=config.device,
        )

    total = sum(min(sizes[place], len(queries) - start) for place, start in missing)
    with progress(total, "answering", "queries") as bar:
        for place, start in missing:
            part = queries.part(start, start + sizes[place])
            answer = answered(place, part)
            if start == 0 and len(part) >= min(count, len(queries)):
                first[place] = answer.first(count, ranks)
            blocks.write(place, start, answer)
            bar.update(len(part))
    tally, schema = Tally(engines[0].store, queries), blocks.schema()
    for table in blocks.tables():
        tally.add(table)
    table_file = out / f"results.{config.format}"
    write_table(blocks.tables(), table_file, schema)
    shown = [
        first[place]
        if place in first
        else answered(place, queries.part(0, count)).first(count, ranks)
        for place in range(len(measures))
    ]
    note = ""
    if count < len(queries) or ranks < config.k:
        note = (
            f"The first {min(count, len(queries)):,} of {len(queries):,} queries are shown, and "
            f"{ranks} samples on each side; {table_file.name} has them all."
        )
    title = f"{len(queries):,} queries of {engines[0].store.name}"
    lines = tally.lines("Queries")
    section = Section("Queries", shown, images[0], note)
    write_report(out / "report.html", title, [section], images[1], lines=lines)
    blocks.remove()
    return Result(table_file, out / "report.html", summary_text(lines))


def questions(store: Store, mean_by: str | None, minus: str | None) -> Queries:
    """What is asked of a query store: its samples, or means of them, or those less one of them."""
    queries = Queries.of(store) if mean_by is None else Queries.means(store, mean_by)
    return queries if minus is None else queries.minus(minus)


def write_answers(
    out: Path, title: str, sections: Sequence[Section], train: Pictures | None
) -> Result:
    """Write `results.parquet` and `report.html` into `out`."""
    import pyarrow.parquet as pq

    answers: list[Answer] = [answer for section in sections for answer in section.answers]
    table, report = out / "results.parquet", out / "report.html"
    pq.write_table(to_table(answers), table)
    write_report(report, title, sections, train)
    return Result(table, report, summary_text(summary(sections)))


def _generated(config: QueryConfig, store: Store, folder: Path) -> DatasetSpec:
    """Generate images into a folder, from which the query store can be shown again."""
    from gradstore.collect import generate

    if not folder.exists():
        last = Path((config.checkpoints or [c.path for c in store.spec.checkpoints])[-1])
        made = generate(last, config.generate, seed=config.generate_seed, device=config.device)
        # Written beside and renamed: a folder of that name holds all of them.
        writing = folder.with_name(f".{folder.name}.writing")
        writing.mkdir(exist_ok=True)
        for number, image in enumerate(made):
            image.save(writing / f"generated-{number:04d}.png")
        writing.rename(folder)
    return DatasetSpec(dataset=str(folder.resolve()))
