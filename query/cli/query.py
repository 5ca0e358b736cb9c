"""Commands that answer queries: query, scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradstore.flags.query import QueryConfig
from gradstore.flags.studies import (
    ScoresConfig,
)
from query.cli.group import cli, follow, say, tell, trusting
from query.cli.parsing import flags, parse

if TYPE_CHECKING:
    from pathlib import Path


@cli.command()
@flags(QueryConfig)
@trusting
def query(config: Path | None, *, follow_recorded: bool, **given: Any) -> None:
    """Find the training samples that pushed towards some images, and those against."""
    settings = parse(QueryConfig, config, given)
    for store in (settings.store, settings.queries):
        follow(store, wanted=follow_recorded)
    from query.ask import ask

    tell(ask(settings))


@cli.command()
@flags(ScoresConfig)
def scores(config: Path | None, **given: Any) -> None:
    """Write every score of a query store. Resumes if interrupted."""
    settings = parse(ScoresConfig, config, given)
    from pathlib import Path

    from gradstore import open_store
    from indexer import measure_of
    from query.checks import require_comparable
    from query.engines import exact_engine, fitted
    from query.question import questions
    from query.scores import require_table, write_scores

    require_table(Path(settings.out))
    store = open_store(settings.store, skip_unsealed=settings.skip_unsealed)
    engine = exact_engine(store, settings.measure, settings.etas, matched=settings.matched)
    queries = questions(open_store(settings.queries), settings.mean_by, settings.minus)
    require_comparable(store, queries.store)
    measure = fitted(measure_of(settings.measure), store)
    write_scores(engine, queries, Path(settings.out), measure=measure)
    say(f"{settings.out}: {len(queries):,} queries × {store.samples:,} samples")
