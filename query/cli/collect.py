"""Commands that make a store: train, collect, plan."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from gradstore.flags.collect import CollectConfig
from gradstore.flags.train import TrainConfig
from query.cli.group import cli, kept, next_step, say
from query.cli.parsing import flags, parse

if TYPE_CHECKING:
    from pathlib import Path


# Exit status of a rank that leaves shards unfinished. 1 is any error, 2 is click's.
UNDONE: Final = 3


@cli.command()
@flags(TrainConfig)
def train(config: Path | None, **given: Any) -> None:
    """Train a small UNet2DModel on images, recording its events."""
    settings = parse(TrainConfig, config, given)
    settings.require_sound()
    text = (
        f"The checkpoints in {settings.out} are kept and can be collected. To train again, remove "
        "it or choose another --out."
    )
    with kept(text):
        from gradstore.collect import train as run

        folders = run(settings)
    say(f"{len(folders)} checkpoints in {folders[0].parent}")
    next_step(f"gradstore collect {settings.out}/collect.yaml")


@cli.command()
@flags(CollectConfig)
def collect(config: Path | None, **given: Any) -> None:
    """Compute, project and store training gradients. Resumes if interrupted.

    Exit status 3: this rank is done, but other processes hold unfinished shards.
    """
    settings = parse(CollectConfig, config, given)
    _require_collectable(settings)
    with kept("Sealed shards are kept: run the same command again to go on."):
        from gradstore.collect import collect_config

        store = collect_config(settings)
    if store.missing():  # already logged as a warning
        sys.exit(UNDONE)
    rows = store.samples * store.slots * store.checkpoints
    say(f"{store.location}: {rows:,} rows, {store.nbytes / 1e6:,.1f} MB")
    next_step(f"gradstore index --store {store.location}")


@cli.command()
@flags(CollectConfig)
def plan(config: Path | None, **given: Any) -> None:
    """Estimate what `collect` with the same settings takes, from one measured batch."""
    settings = parse(CollectConfig, config, given)
    _require_collectable(settings)
    with kept("Nothing was written."):
        from gradstore.collect import plan_config
        from indexer.approximate.factory import DEFAULT, estimated_bytes

        bill = plan_config(settings)
    say(bill)
    index_bytes = estimated_bytes(DEFAULT, bill.dim, bill.samples)
    say(f"\nThen an index takes {index_bytes / 1e6:,.1f} MB of memory per measure.")
    next_step("gradstore collect, with the same settings")


def _require_collectable(settings: CollectConfig) -> None:
    """Report mistakes that can be found without importing torch, which takes seconds."""
    from gradstore.collect.models.folders import (
        checkpoint_folders,
        moments_file,
        require_etas,
        require_events,
    )
    from gradstore.store.format.spec import ModelSpec
    from gradstore.store.objects.location import objects_at
    from gradstore.store.opening import looks_like_store
    from gradstore.store.writer import refuse_existing

    settings.require_there()
    models = ModelSpec.model_validate(settings.model_dump(include=set(ModelSpec.model_fields)))
    folders = checkpoint_folders(settings.checkpoints, models)
    require_etas(settings.etas, len(folders))
    place = objects_at(settings.store)
    if not looks_like_store(place):
        refuse_existing(place)
    if settings.events == "replayed":
        require_events(folders)
    if settings.metric == "adam":
        for folder in folders:
            moments_file(folder)
