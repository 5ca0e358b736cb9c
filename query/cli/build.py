"""Commands that build: train, collect, plan, index."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import click

from gradstore.flags import CollectConfig, TrainConfig
from indexer.flags import IndexConfig
from query.cli.group import cli, next_step
from query.cli.parsing import flags, parse

if TYPE_CHECKING:
    from pathlib import Path

    from indexer.approximate.spec import IndexSpec


# Exit status of a rank that leaves shards unfinished. 1 is any error, 2 is click's.
_UNDONE: Final = 3


@cli.command()
@flags(TrainConfig)
def train(config: Path | None, **given: Any) -> None:
    """Train a small UNet2DModel on images, recording its events."""
    settings = parse(TrainConfig, config, given)
    settings.require_sound()
    from gradstore.collect import train as run

    folders = run(settings)
    click.echo(f"{len(folders)} checkpoints in {folders[0].parent}")
    next_step(f"gradstore collect {settings.out}/collect.yaml")


@cli.command()
@flags(CollectConfig)
def collect(config: Path | None, **given: Any) -> None:
    """Compute, project and store training gradients. Resumes if interrupted.

    Exit status 3: this rank is done, but other processes hold unfinished shards.
    """
    settings = parse(CollectConfig, config, given)
    _require_collectable(settings)
    from gradstore.collect import collect_config

    try:
        store = collect_config(settings)
    except KeyboardInterrupt:
        click.echo("\nSealed shards are kept; the same command resumes.", err=True)
        raise
    if store.missing():  # already logged as a warning
        sys.exit(_UNDONE)
    rows = store.samples * store.slots * store.checkpoints
    click.echo(f"{store.location}: {rows:,} rows, {store.nbytes / 1e6:,.1f} MB")
    next_step(f"gradstore index --store {store.location}")


@cli.command()
@flags(CollectConfig)
def plan(config: Path | None, **given: Any) -> None:
    """Estimate what `collect` with the same settings takes, from one measured batch."""
    settings = parse(CollectConfig, config, given)
    _require_collectable(settings)
    from gradstore.collect import plan_config
    from indexer.approximate.factory import DEFAULT, estimated_bytes

    bill = plan_config(settings)
    click.echo(bill)
    index_bytes = estimated_bytes(DEFAULT, bill.dim, bill.samples)
    click.echo(f"\nThen an index takes {index_bytes / 1e6:,.1f} MB of memory per measure.")
    next_step("gradstore collect, with the same settings")


def _require_collectable(settings: CollectConfig) -> None:
    """Report mistakes that can be found without importing torch, which takes seconds."""
    from gradstore.collect.models.folders import checkpoint_folders, require_etas, require_events
    from gradstore.store.objects.location import objects_at
    from gradstore.store.opening import looks_like_store
    from gradstore.store.writer import refuse_existing

    settings.require_there()
    folders = checkpoint_folders(settings.checkpoints)
    require_etas(settings.etas, len(folders))
    place = objects_at(settings.store)
    if not looks_like_store(place):
        refuse_existing(place)
    if settings.events == "replayed":
        require_events(folders)


@cli.command()
@flags(IndexConfig)
def index(config: Path | None, **given: Any) -> None:
    """Build a FAISS index per measure."""
    settings = parse(IndexConfig, config, given)
    from gradstore import open_store
    from indexer import Trak, build_index, measure_of
    from indexer.approximate.build import estimated_nbytes
    from indexer.kernel import build_kernel
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
        click.echo(f"{measure}: building an index of about {expected / 1e6:,.1f} MB")
        if isinstance(measure_of(measure), Trak):
            click.echo(f"{build_kernel(store)}: serves trak with every λ")
        built = build_index(
            store, measure, etas=etas, matched=matched, factory=factory, queries=queries
        )
        click.echo(
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
