"""The command `gradstore`. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import click

from gradstore import __version__
from gradstore.config import CollectConfig, TrainConfig
from gradstore.errors import GradstoreError, StoreError
from query.config import DemoConfig, QueryConfig
from query.flags import flags, parse

try:
    from indexer.config import IndexConfig
except ImportError as error:
    sys.exit(
        f"Error: {error}. Another package or folder called 'indexer' comes before gradstore's on "
        "the path: rename it, or run from another folder."
    )

if TYPE_CHECKING:
    from pathlib import Path

    from query.ask import Result


class _Group(click.Group):
    """Commands in the order in which they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)


@click.group(
    cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="gradstore")
def cli() -> None:
    """Which training images pushed a diffusion model towards an image, and which against?

    The road: train (or bring your own checkpoints), collect, index, query. Every command takes a
    YAML file of settings, flags, or both; flags win.
    """


@cli.command()
@flags(TrainConfig)
def train(config: Path | None, **given: Any) -> None:
    """Train a small UNet2DModel on images, recording its events."""
    settings = parse(TrainConfig, config, given)
    from gradstore.collect import train as run

    folders = run(settings)
    click.echo(f"{len(folders)} checkpoints in {folders[0].parent}")
    _next(f"gradstore collect {settings.out}/collect.yaml")


@cli.command()
@flags(CollectConfig)
def collect(config: Path | None, **given: Any) -> None:
    """Compute, project and store training gradients. Run again, it goes on where it stopped."""
    settings = parse(CollectConfig, config, given)
    from gradstore.collect import collect_config

    try:
        store = collect_config(settings)
    except KeyboardInterrupt:
        click.echo("\nWhat is sealed is kept; the same command goes on from there.", err=True)
        raise
    left = len(store.missing())
    rows = store.layout.samples * store.layout.slots * store.checkpoints
    click.echo(f"{store.path}: {rows:,} rows, {store.nbytes / 1e6:,.1f} MB")
    if left:
        click.echo(f"{left} shards are other processes' work and not sealed yet")
    _next(f"gradstore index --store {store.path}")


@cli.command()
@flags(CollectConfig)
def plan(config: Path | None, **given: Any) -> None:
    """Say what `collect` with the same settings will take, from one measured batch."""
    settings = parse(CollectConfig, config, given)
    from gradstore.collect import plan_config

    click.echo(plan_config(settings))
    _next("gradstore collect, with the same settings")


@cli.command()
@flags(IndexConfig)
def index(config: Path | None, **given: Any) -> None:
    """Build a FAISS index per measure."""
    settings = parse(IndexConfig, config, given)
    from gradstore import open_store
    from indexer import build_index

    store = open_store(settings.store)
    for measure in settings.measures:
        built = build_index(store, measure)
        click.echo(
            f"{built.path}: {built.spec.count:,} vectors of {built.spec.dim:,}, exact, "
            f"{built.nbytes / 1e6:,.1f} MB"
        )
    _next(f"gradstore query --store {store.path} --dataset FOLDER_OF_IMAGES --out answers")


@cli.command()
@flags(QueryConfig)
def query(config: Path | None, **given: Any) -> None:
    """Ask which training samples pushed towards some images, and which against."""
    settings = parse(QueryConfig, config, given)
    from query.ask import ask

    _tell(ask(settings))


@cli.command()
@click.argument("store")
def info(store: str) -> None:
    """Show what a store holds and what made it."""
    from query.info import describe

    click.echo(describe(store))


@cli.command()
@click.argument("store")
@click.option("--repair", is_flag=True, help="collect damaged shards again")
def verify(store: str, *, repair: bool) -> None:
    """Check every byte of a store against its seals."""
    from gradstore import open_store
    from gradstore.verify import verify as check

    opened = open_store(store)
    problems = [report for report in check(opened) if report.problem]
    for report in problems:
        click.echo(f"checkpoint {report.checkpoint}, shard {report.shard}: {report.problem}")
    damaged = [(one.checkpoint, one.shard) for one in problems if one.sealed]
    unsealed = len(problems) - len(damaged)
    if damaged and repair:
        from gradstore.collect import repair as collect_again

        collect_again(opened, damaged)
        problems = [one for one in check(opened) if one.problem]
        damaged = [(one.checkpoint, one.shard) for one in problems if one.sealed]
    if damaged:
        raise StoreError(
            f"{store}: {len(damaged)} sealed shards are damaged. Collect them again with "
            f"`gradstore verify {store} --repair`, or restore them from a copy."
        )
    if unsealed:
        raise StoreError(
            f"{store}: {unsealed} shards are not collected yet; what is sealed is as it was. "
            "Run the same `gradstore collect` again to go on."
        )
    click.echo(f"{store}: every shard is as it was sealed")


@cli.command()
@flags(DemoConfig)
def demo(config: Path | None, **given: Any) -> None:
    """Run the whole road on scikit-learn's handwritten digits."""
    settings = parse(DemoConfig, config, given)
    from query.demo import run

    _tell(run(settings))


@cli.command()
def doctor() -> None:
    """Check versions, devices, the FAISS build, fast_jl, and shadowed packages."""
    from query.doctor import examine

    findings = examine()
    for finding in findings:
        click.echo(f"{'ok ' if finding.good else 'BAD'}  {finding.what}: {finding.found}")
        if finding.mend:
            click.echo(f"     {finding.mend}")
    if not all(finding.good for finding in findings):
        sys.exit(1)


def _tell(result: Result) -> None:
    click.echo(result.text)
    click.echo(f"wrote {result.table} and {result.report}")
    _next(f"open {result.report}")


def _next(command: str) -> None:
    click.echo(f"\nNext: {command}")


def main() -> None:
    """Run the command line; a gradstore error is a message and exit status 1, no traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("gradstore").setLevel(logging.INFO)
    try:
        cli()
    except GradstoreError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
