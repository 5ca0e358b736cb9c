"""The command `gradstore`. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from gradstore import __version__
from gradstore.config import AppendConfig, CollectConfig, TrainConfig, known_device
from gradstore.errors import ConfigError, GradstoreError, StoreError
from query.config import (
    BreakdownConfig,
    DemoConfig,
    HubnessConfig,
    QueryConfig,
    RollupConfig,
    ScoresConfig,
    SelfInfluenceConfig,
)
from query.flags import flags, parse

try:
    from indexer.config import IndexConfig
except ImportError as error:
    sys.exit(
        f"Error: {error}. Another package or folder called 'indexer' comes before gradstore's on "
        "the path: rename it, or run from another folder."
    )

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from indexer.index import IndexSpec
    from query.ask import Result


# Exit status of a rank that leaves shards undone: 1 is any error, 2 is click's.
_UNDONE: Final = 3


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
    settings.require_sound()
    from gradstore.collect import train as run

    folders = run(settings)
    click.echo(f"{len(folders)} checkpoints in {folders[0].parent}")
    _next(f"gradstore collect {settings.out}/collect.yaml")


@cli.command()
@flags(CollectConfig)
def collect(config: Path | None, **given: Any) -> None:
    """Compute, project and store training gradients. Run again, it goes on where it stopped.

    Exit status 3: this rank has done what it could, and other processes hold shards that are not
    done.
    """
    settings = parse(CollectConfig, config, given)
    _require_collectable(settings)
    from gradstore.collect import collect_config

    try:
        store = collect_config(settings)
    except KeyboardInterrupt:
        click.echo("\nWhat is sealed is kept; the same command goes on from there.", err=True)
        raise
    if store.missing():  # which was warned of
        sys.exit(_UNDONE)
    rows = store.samples * store.slots * store.checkpoints
    click.echo(f"{store.location}: {rows:,} rows, {store.nbytes / 1e6:,.1f} MB")
    _next(f"gradstore index --store {store.location}")


@cli.command()
@flags(CollectConfig)
def plan(config: Path | None, **given: Any) -> None:
    """Say what `collect` with the same settings will take, from one measured batch."""
    settings = parse(CollectConfig, config, given)
    _require_collectable(settings)
    from gradstore.collect import plan_config
    from indexer.factory import DEFAULT, estimated_bytes

    bill = plan_config(settings)
    click.echo(bill)
    index_bytes = estimated_bytes(DEFAULT, bill.dim, bill.samples)
    click.echo(f"\nThen an index takes {index_bytes / 1e6:,.1f} MB of memory per measure.")
    _next("gradstore collect, with the same settings")


def _require_collectable(settings: CollectConfig) -> None:
    """Raise what can be told before torch is imported, which takes seconds."""
    from gradstore.checkpoint_folders import checkpoint_folders, require_etas, require_events
    from gradstore.objects import objects_at
    from gradstore.reader import looks_like_store
    from gradstore.writer import refuse_existing

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
    from indexer import build_index, measure_of
    from indexer.index import estimated_nbytes
    from indexer.kernel import build_kernel
    from query.engine import require_comparable

    store = open_store(settings.store, skip_unsealed=settings.skip_unsealed)
    for name in settings.measures:  # what is misspelt comes before what takes long
        measure_of(name)
    queries = None
    if settings.queries is not None:
        queries = open_store(settings.queries)
        require_comparable(store, queries)
        queries.require_complete()
    etas, matched, factory = settings.etas, settings.matched, settings.factory
    for measure in settings.measures:
        expected = estimated_nbytes(store, measure, etas=etas, matched=matched, factory=factory)
        click.echo(f"{measure}: an index of about {expected / 1e6:,.1f} MB is built")
        if measure.partition(":")[0] == "trak":
            click.echo(f"{build_kernel(store)}: serves trak with every λ")
        built = build_index(
            store, measure, etas=etas, matched=matched, factory=factory, queries=queries
        )
        click.echo(
            f"{built.path}: {built.spec.count:,} vectors of {built.spec.dim:,}, "
            f"{built.nbytes / 1e6:,.1f} MB, {_recall(built.spec)}"
        )
    _next(f"gradstore query --store {store.location} --dataset FOLDER_OF_IMAGES --out answers")


@cli.command()
@flags(QueryConfig)
def query(config: Path | None, **given: Any) -> None:
    """Ask which training samples pushed towards some images, and which against."""
    settings = parse(QueryConfig, config, given)
    from query.ask import ask

    _tell(ask(settings))


@cli.command()
@flags(ScoresConfig)
def scores(config: Path | None, **given: Any) -> None:
    """Write every score of a query store. Run again, it goes on where it stopped."""
    settings = parse(ScoresConfig, config, given)
    from pathlib import Path

    from gradstore import open_store
    from indexer import measure_of
    from query.ask import exact_engine, fitted, questions
    from query.engine import require_comparable
    from query.scores import require_table, write_scores

    require_table(Path(settings.out))
    store = open_store(settings.store, skip_unsealed=settings.skip_unsealed)
    engine = exact_engine(store, settings.measure, settings.etas, matched=settings.matched)
    queries = questions(open_store(settings.queries), settings.mean_by, settings.minus)
    require_comparable(store, queries.store)
    measure = fitted(measure_of(settings.measure), store)
    write_scores(engine, queries, Path(settings.out), measure=measure)
    click.echo(f"{settings.out}: {len(queries):,} queries × {store.samples:,} samples")


@cli.command()
@flags(RollupConfig)
def rollup(config: Path | None, **given: Any) -> None:
    """Tell the influence of whole groups of training samples: exact totals, means and maxima."""
    settings = parse(RollupConfig, config, given)
    from gradstore import open_store
    from indexer import measure_of
    from query.ask import exact_engine, fitted, questions
    from query.engine import require_comparable
    from query.studies import rollup_table

    out = _new_table(settings.out)
    store = open_store(settings.store, skip_unsealed=settings.skip_unsealed)
    engine = exact_engine(store, settings.measure, settings.etas, matched=settings.matched)
    queries = questions(open_store(settings.queries), settings.mean_by, settings.minus)
    require_comparable(store, queries.store)
    measure = fitted(measure_of(settings.measure), store)
    _write(rollup_table(engine, queries, settings.by, measure=measure, top=settings.top), out)


@cli.command()
@flags(SelfInfluenceConfig)
def self_influence(config: Path | None, **given: Any) -> None:
    """List training samples by their influence on themselves: what is hard, strange or mislabelled.

    The first rows are the outliers.
    """
    settings = parse(SelfInfluenceConfig, config, given)
    from gradstore import open_store
    from query.ask import exact_engine
    from query.studies import self_influence_table

    out = _new_table(settings.out)
    store = open_store(settings.store, skip_unsealed=settings.skip_unsealed)
    engine = exact_engine(store, settings.measure, settings.etas, matched=settings.matched)
    _write(self_influence_table(engine), out)


@cli.command()
@flags(HubnessConfig)
def hubness(config: Path | None, **given: Any) -> None:
    """Tell which training samples are influential for everyone, from what `query` wrote."""
    settings = parse(HubnessConfig, config, given)
    from pathlib import Path

    from gradstore import open_store
    from query.hubs import hubness_of_results
    from query.table import shown, write_table

    out = Path(settings.out)
    if out.exists():
        raise ConfigError(f"{out} exists; nothing was changed. Choose another --out.")
    store = open_store(settings.store, skip_unsealed=settings.skip_unsealed)
    found = hubness_of_results(store, Path(settings.results))
    out.mkdir(parents=True)
    for one in found:
        name, table = one.measure.replace(":", "-"), one.to_table()
        write_table(table, out / f"{name}.parquet", table.schema)
        one.plot(out / f"{name}.png")
        click.echo(
            f"{one.measure}: distinctness {one.distinctness:.2f}, Spearman of influence with norm "
            f"{one.influence_with_norm:.2f}, with timestep {one.influence_with_timestep:.2f}\n"
            f"{shown(table)}\n"
        )
    click.echo(f"wrote {out}")


@cli.command()
@flags(BreakdownConfig)
def breakdown(config: Path | None, **given: Any) -> None:
    """Take one score apart, by checkpoint and pair of timesteps."""
    settings = parse(BreakdownConfig, config, given)
    from gradstore import open_store
    from query.ask import exact_engine
    from query.studies import breakdown_table

    out = _new_table(settings.out)
    if settings.measure.partition(":")[0] == "trak":
        raise ConfigError("trak is no sum over pairs of rows. Use a measure of rows: tracin, ….")
    store = open_store(settings.store, skip_unsealed=settings.skip_unsealed)
    engine = exact_engine(store, settings.measure, settings.etas, matched=settings.matched)
    queries = open_store(settings.queries)
    _write(breakdown_table(engine, queries, settings.query, settings.sample), out)


def _new_table(name: str) -> Path:
    from pathlib import Path

    out = Path(name)
    if out.suffix not in {".parquet", ".jsonl"}:
        raise ConfigError(f"--out is {name!r}: a table is written as NAME.parquet or NAME.jsonl.")
    if out.exists():
        raise ConfigError(f"{out} exists; nothing was changed. Choose another --out.")
    if not out.parent.is_dir():
        raise ConfigError(f"--out is {name!r}, but there is no folder {out.parent}. Make it first.")
    return out


def _write(table: Any, out: Path) -> None:
    from query.table import shown, write_table

    write_table(table, out, table.schema)
    click.echo(shown(table))
    click.echo(f"wrote {out}")


@cli.command()
@flags(AppendConfig)
def append(config: Path | None, **given: Any) -> None:
    """Collect further samples into a store, by the configuration that made it.

    Exit status 3: this rank has done what it could, and other processes hold shards that are not
    done.
    """
    settings = parse(AppendConfig, config, given)
    from gradstore import open_store
    from gradstore.checkpoint_folders import checkpoint_folders
    from gradstore.recorded import require_recorded

    before = open_store(settings.store)
    before.require_complete()
    settings.require_there()
    checkpoint_folders(settings.checkpoints or [one.path for one in before.spec.checkpoints])
    require_recorded(before, before.spec.parts[:1])  # whose configuration is taken
    from gradstore.collect.grow import append_config

    after, whole = append_config(
        before,
        settings.dataset_spec(),
        batch_size=settings.batch_size,
        memory=settings.memory,
        device=settings.device,
        checkpoints=settings.checkpoints,
    )
    if not whole:  # which was warned of
        sys.exit(_UNDONE)
    click.echo(f"{after.location}: {before.samples:,} samples, now {after.samples:,}")
    _next(f"gradstore index --store {after.location}")


@cli.command()
@click.argument("store")
@click.option("--ids", metavar="A,B,…", help="ids of the samples")
@click.option(
    "--ids-file", type=click.Path(exists=True, dir_okay=False), help="a text file of an id a line"
)
def delete(store: str, ids: str | None, ids_file: str | None) -> None:
    """Delete samples: hidden from every query at once, removed by vacuum."""
    from pathlib import Path

    from gradstore import delete as remove
    from gradstore import open_store

    wanted = ids.split(",") if ids else []
    if ids_file:
        try:
            lines = Path(ids_file).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{ids_file} is not a text file of ids: {error}.") from error
        wanted += [line for line in lines if line]
    if not wanted:
        raise ConfigError("which samples? Give --ids or --ids-file.")
    after = remove(open_store(store), wanted)
    click.echo(f"{store}: {len(set(wanted)):,} deleted, {after.samples:,} samples left")
    _next(f"gradstore vacuum {store}")


@cli.command()
@click.argument("store")
def vacuum(store: str) -> None:
    """Remove for good what was deleted, dropped or cut off. Nothing else may write meanwhile."""
    from gradstore import open_store
    from gradstore import vacuum as clean

    before = open_store(store)
    freed = before.nbytes - clean(before).nbytes
    click.echo(f"{store}: {freed / 1e6:,.1f} MB freed")
    _next(f"gradstore index --store {store}")


@cli.command()
@click.argument("store")
@click.argument("other")
def merge(store: str, other: str) -> None:
    """Take all samples of a store OTHER of the same fingerprint into STORE."""
    from gradstore import merge as take
    from gradstore import open_store

    before = open_store(store)
    after = take(before, open_store(other))
    click.echo(f"{store}: {before.samples:,} samples, now {after.samples:,}")
    _next(f"gradstore index --store {store}")


@cli.command()
@click.argument("store")
@click.argument("checkpoint")
@click.option("--eta", type=float, help="its weight η [default: as recorded, else 1]")
@click.option("--memory", type=float, default=4.0, help="GiB to take beside the model")
@click.option("--device", help="torch device [default: cuda if there is one]")
def add_checkpoint(
    store: str, checkpoint: str, eta: float | None, memory: float, device: str | None
) -> None:
    """Collect every sample of a store at one checkpoint more, the latest."""
    from gradstore import open_store
    from gradstore.checkpoint_folders import checkpoint_folders, require_etas
    from gradstore.recorded import require_recorded

    opened = open_store(store)
    if len(checkpoint_folders([checkpoint])) > 1:
        raise ConfigError(
            f"{checkpoint} holds several checkpoints. Add one after the other, by its own folder."
        )
    require_etas(None if eta is None else [eta], 1)
    try:
        known_device(device)
    except ValueError as error:
        raise ConfigError(f"--device is {device!r}: {error}") from error
    require_recorded(opened, opened.spec.parts)
    from gradstore.collect import add_checkpoint as add

    after = add(opened, checkpoint, eta=eta, memory=memory, device=device)
    click.echo(f"{store}: {after.checkpoints} checkpoints, weights {_listed(after.etas)}")
    _next(f"gradstore index --store {store}")


@cli.command()
@click.argument("store")
@click.argument("checkpoint", type=int)
def drop_checkpoint(store: str, checkpoint: int) -> None:
    """Leave a checkpoint, by its number in `info`, out of a store. Vacuum removes its bytes."""
    from gradstore import drop_checkpoint as drop
    from gradstore import open_store

    before = open_store(store)
    if checkpoint not in before.numbers:
        raise StoreError(f"{store} has checkpoints {_listed(before.numbers)}, no {checkpoint}")
    after = drop(before, before.numbers.index(checkpoint))
    click.echo(f"{store}: {after.checkpoints} checkpoints, weights {_listed(after.etas)}")
    _next(f"gradstore index --store {store}")


def _recall(spec: IndexSpec) -> str:
    found = spec.measured
    return (
        f"recall {found.recall_at_10:.3f} of the first 10 and {found.recall_at_100:.3f} of the "
        f"first 100 of {found.queries} "
        + ("training samples" if found.origin == "samples" else f"queries of {found.origin}")
        + f", {found.candidates} candidates scored again"
    )


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


@cli.command()
@click.argument("store")
@click.option("--json", "as_json", is_flag=True, help="as JSON, for programs")
def info(store: str, *, as_json: bool) -> None:
    """Show what a store holds and what made it."""
    import json

    from gradstore import open_store
    from query.info import describe, examine

    click.echo(json.dumps(examine(open_store(store)), indent=2) if as_json else describe(store))


@cli.command()
@click.argument("store")
@click.option(
    "--repair", is_flag=True, help="collect damaged shards again, and describe arrays anew to Zarr"
)
def verify(store: str, *, repair: bool) -> None:
    """Check every byte of a store against its seals."""
    from gradstore import open_store
    from gradstore.verify import describe_anew
    from gradstore.verify import verify as check

    opened = open_store(store)
    for key in describe_anew(opened) if repair else ():
        click.echo(f"{key}: written anew")
    problems = [report for report in check(opened) if report.problem]
    for report in problems:
        click.echo(str(report))
    damaged = [report for report in problems if report.sealed]
    unsealed = len(problems) - len(damaged)
    if damaged and repair:
        from gradstore.collect import repair as collect_again

        collect_again(opened, damaged)
        problems = [report for report in check(opened) if report.problem]
        damaged = [report for report in problems if report.sealed]
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
