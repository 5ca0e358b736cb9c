"""Commands that change a store: append, delete, vacuum, merge, add- and drop-checkpoint."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from gradstore.errors import ConfigError, StoreError
from gradstore.flags.append import AppendConfig
from gradstore.flags.dataset import known_device
from query.cli.collect import UNDONE
from query.cli.group import cli, follow, next_step, say, trusting
from query.cli.parsing import flags, parse

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@cli.command()
@flags(AppendConfig)
@trusting
def append(config: Path | None, *, follow_recorded: bool, **given: Any) -> None:
    """Collect further samples into a store, with the configuration that made it.

    Exit status 3: this rank is done, but other processes hold unfinished shards.
    """
    settings = parse(AppendConfig, config, given)
    follow(settings.store, wanted=follow_recorded)
    from gradstore import open_store
    from gradstore.collect.models.folders import checkpoint_folders
    from gradstore.collect.provenance import followed_models, recorded_folders, require_recorded

    before = open_store(settings.store)
    before.require_complete()
    settings.require_there()
    checkpoint_folders(
        settings.checkpoints or recorded_folders(before),
        followed_models(before, settings.base),
        exact=not settings.checkpoints,
    )
    require_recorded(before, before.spec.parts[:1])  # the new part uses its configuration
    from gradstore.collect.grow import append_config

    after, whole = append_config(
        before,
        settings.dataset_spec(),
        batch_size=settings.batch_size,
        memory=settings.memory,
        device=settings.device,
        checkpoints=settings.checkpoints,
        base=settings.base,
    )
    if not whole:  # already logged as a warning
        sys.exit(UNDONE)
    say(f"{after.location}: {before.samples:,} samples, now {after.samples:,}")
    next_step(f"gradstore index --store {after.location}")


@cli.command()
@click.argument("store")
@click.option("--ids", multiple=True, help="id of a sample; repeat the flag for more")
@click.option(
    "--ids-file", type=click.Path(exists=True, dir_okay=False), help="text file, one id per line"
)
def delete(store: str, ids: tuple[str, ...], ids_file: str | None) -> None:
    """Delete samples: hides them from every query; vacuum frees their bytes."""
    from pathlib import Path

    from gradstore import delete as remove
    from gradstore import open_store

    wanted = list(ids)
    if ids_file:
        try:
            lines = Path(ids_file).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{ids_file} is not a text file of ids: {error}.") from error
        wanted += [line for line in lines if line]
    if not wanted:
        raise ConfigError("no samples are named. Give --ids or --ids-file.")
    after = remove(open_store(store), wanted)
    say(f"{store}: {len(set(wanted)):,} deleted, {after.samples:,} samples left")
    next_step(f"gradstore vacuum {store}")


@cli.command()
@click.argument("store")
@click.option("--upgrade", is_flag=True, help="Rewrite an older format in the present one.")
def vacuum(store: str, *, upgrade: bool) -> None:
    """Free bytes of deleted, dropped and interrupted data. No other process may write then."""
    from gradstore import open_store
    from gradstore import vacuum as clean
    from query.leftovers import left_beside
    from query.results.writing import remove

    before = open_store(store)
    freed = before.nbytes - clean(before, upgrade=upgrade).nbytes
    for left in left_beside(before):
        freed += left.lstat().st_size
        if left.is_dir() and not left.is_symlink():
            freed += sum(file.lstat().st_size for file in left.rglob("*") if file.is_file())
        remove(left)
    say(f"{store}: {freed / 1e6:,.1f} MB freed")
    next_step(f"gradstore index --store {store}")


@cli.command()
@click.argument("store")
@click.argument("other")
def merge(store: str, other: str) -> None:
    """Copy all samples of store OTHER, with the same fingerprint, into STORE."""
    from gradstore import merge as take
    from gradstore import open_store

    before = open_store(store)
    after = take(before, open_store(other))
    say(f"{store}: {before.samples:,} samples, now {after.samples:,}")
    next_step(f"gradstore index --store {store}")


@cli.command()
@click.argument("store")
@click.argument("checkpoint")
@click.option("--eta", type=float, help="its weight η [default: as recorded, else 1]")
@click.option("--memory", type=float, default=4.0, help="GiB of memory in addition to the model")
@click.option("--device", help="torch device [default: cuda if there is one]")
@trusting
def add_checkpoint(
    store: str,
    checkpoint: str,
    eta: float | None,
    memory: float,
    device: str | None,
    *,
    follow_recorded: bool,
) -> None:
    """Collect every sample of a store at one more checkpoint, which is the latest."""
    from gradstore import open_store
    from gradstore.collect.models.folders import checkpoint_folders, require_etas
    from gradstore.collect.provenance import followed_models, require_recorded

    opened = open_store(store)
    follow(store, wanted=follow_recorded)
    if len(checkpoint_folders([checkpoint], followed_models(opened))) > 1:
        raise ConfigError(
            f"{checkpoint} holds several checkpoints. Add them one by one, each by its own folder."
        )
    require_etas(None if eta is None else [eta], 1)
    try:
        known_device(device)
    except ValueError as error:
        raise ConfigError(f"--device is {device!r}: {error}") from error
    require_recorded(opened, opened.spec.parts)
    from gradstore.collect import add_checkpoint as add

    after = add(opened, checkpoint, eta=eta, memory=memory, device=device)
    say(f"{store}: {after.checkpoints} checkpoints, weights {listed(after.etas)}")
    next_step(f"gradstore index --store {store}")


@cli.command()
@click.argument("store")
@click.argument("checkpoint", type=int)
def drop_checkpoint(store: str, checkpoint: int) -> None:
    """Remove a checkpoint, by its number in `info`, from a store. Vacuum frees its bytes."""
    from gradstore import drop_checkpoint as drop
    from gradstore import open_store

    before = open_store(store)
    if checkpoint not in before.numbers:
        raise StoreError(f"{store} has checkpoints {listed(before.numbers)}, no {checkpoint}")
    after = drop(before, before.numbers.index(checkpoint))
    say(f"{store}: {after.checkpoints} checkpoints, weights {listed(after.etas)}")
    next_step(f"gradstore index --store {store}")


def listed(values: Sequence[float]) -> str:
    """Format numbers, separated by commas."""
    return ", ".join(f"{value:g}" for value in values)
