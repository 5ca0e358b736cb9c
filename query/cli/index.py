"""The command index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradstore.flags.index import IndexConfig
from query.cli.group import cli, next_step, say
from query.cli.parsing import flags, parse

if TYPE_CHECKING:
    from pathlib import Path

    from indexer.approximate.spec import IndexSpec


@cli.command()
@flags(IndexConfig)
def index(config: Path | None, **given: Any) -> None:
    """Build a FAISS index per measure."""
    settings = parse(IndexConfig, config, given)
    from gradstore import open_store
    from indexer import build_index, measure_of
    from indexer.approximate.build import estimated_nbytes
    from indexer.measure import KernelMeasure
    from indexer.trak_kernel import build_kernel
    from query.checks import require_comparable

    store = open_store(settings.store, skip_unsealed=settings.skip_unsealed)
    for name in settings.measures:  # report misspelt names before slow work
        measure_of(name)
    queries = None
    if settings.queries is not None:
        queries = open_store(settings.queries)
        require_comparable(store, queries)
        queries.require_complete()
    etas, matched, factory = settings.etas, settings.matched, settings.factory
    for measure in settings.measures:
        expected = estimated_nbytes(store, measure, etas=etas, matched=matched, factory=factory)
        say(f"{measure}: building an index of about {expected / 1e6:,.1f} MB")
        if isinstance(measure_of(measure), KernelMeasure):
            say(f"{build_kernel(store)}: serves every trak and minus")
        built = build_index(
            store, measure, etas=etas, matched=matched, factory=factory, queries=queries
        )
        say(
            f"{built.path}: {built.spec.count:,} vectors of {built.spec.dim:,}, "
            f"{built.nbytes / 1e6:,.1f} MB, {_recall(built.spec)}"
        )
    next_step(f"gradstore query --store {store.location} --dataset FOLDER_OF_IMAGES --out answers")


def _recall(spec: IndexSpec) -> str:
    found = spec.measured
    return (
        f"recall {found.recall_at_10:.3f} of the first 10 and {found.recall_at_100:.3f} of the "
        f"first 100 of {found.queries} "
        + ("training samples" if found.origin == "samples" else f"queries of {found.origin}")
        + f", {found.candidates} candidates rescored"
    )
