"""Commands that study all samples: rollup, self-influence, hubness, breakdown, evaluate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradstore.errors import ConfigError
from gradstore.flags.evaluate import EvaluateConfig
from gradstore.flags.studies import (
    BreakdownConfig,
    HubnessConfig,
    RollupConfig,
    SelfInfluenceConfig,
)
from query.cli.group import cli, say
from query.cli.parsing import flags, parse

if TYPE_CHECKING:
    from pathlib import Path


@cli.command()
@flags(RollupConfig)
def rollup(config: Path | None, **given: Any) -> None:
    """Sum influence over groups of training samples: exact totals, means and maxima."""
    settings = parse(RollupConfig, config, given)
    from gradstore import open_store
    from indexer import measure_of
    from query.checks import require_comparable
    from query.engines import exact_engine, fitted
    from query.question import questions
    from query.studies.tables import rollup_table

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
    """Rank training samples by self-influence, to find hard, atypical or mislabelled ones.

    The first rows are the outliers.
    """
    settings = parse(SelfInfluenceConfig, config, given)
    from gradstore import open_store
    from indexer import measure_of
    from indexer.measure import is_of_rows
    from query.engines import exact_engine
    from query.studies.tables import self_influence_table

    out = _new_table(settings.out)
    if not is_of_rows(measure_of(settings.measure)):
        raise ConfigError(
            f"{settings.measure} is no measure of rows, and a sample's influence on itself is not "
            "defined for it. Use tracin, retrac, …."
        )
    store = open_store(settings.store, skip_unsealed=settings.skip_unsealed)
    engine = exact_engine(store, settings.measure, settings.etas, matched=settings.matched)
    _write(self_influence_table(engine), out)


@cli.command()
@flags(HubnessConfig)
def hubness(config: Path | None, **given: Any) -> None:
    """Find training samples that are influential for most queries, from results of `query`."""
    settings = parse(HubnessConfig, config, given)
    from pathlib import Path

    from gradstore import open_store
    from query.results.folder import require_place
    from query.results.table import shown, write_table
    from query.results.writing import named, written
    from query.studies.hubness import hubness_of_results

    out = Path(settings.out)
    require_place(out)
    if out.exists():
        raise ConfigError(f"{out} exists; nothing was changed. Choose another --out.")
    store = open_store(settings.store, skip_unsealed=settings.skip_unsealed)
    found = hubness_of_results(store, Path(settings.results))
    with named(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with written(out) as writing:
        writing.mkdir()
        for one in found:
            name, table = one.measure.replace(":", "-"), one.to_table()
            write_table(table, writing / f"{name}.parquet", table.schema)
            one.plot(writing / f"{name}.png")
    for one in found:
        say(
            f"{one.measure}: distinctness {one.distinctness:.2f}, Spearman of influence with norm "
            f"{one.influence_with_norm:.2f}, with timestep {one.influence_with_timestep:.2f}\n"
            f"{shown(one.to_table())}\n"
        )
    say(f"wrote {out}")


@cli.command()
@flags(EvaluateConfig)
def evaluate(config: Path | None, **given: Any) -> None:
    """Measure how far answers can be trusted: against retraining, labels, copies and pixels."""
    settings = parse(EvaluateConfig, config, given)
    from query.evaluation.evaluate import evaluate as run

    found = run(settings)
    say(found)
    say(f"\nwrote {found.path}")


@cli.command()
@flags(BreakdownConfig)
def breakdown(config: Path | None, **given: Any) -> None:
    """Split one score by checkpoint and pair of timesteps."""
    settings = parse(BreakdownConfig, config, given)
    from gradstore import open_store
    from indexer import measure_of
    from indexer.measure import is_of_rows
    from query.engines import exact_engine
    from query.studies.tables import breakdown_table

    out = _new_table(settings.out)
    if not is_of_rows(measure_of(settings.measure)):
        raise ConfigError(
            f"{settings.measure} is no sum over pairs of rows. Use a measure of rows: tracin, …."
        )
    store = open_store(settings.store, skip_unsealed=settings.skip_unsealed)
    engine = exact_engine(store, settings.measure, settings.etas, matched=settings.matched)
    queries = open_store(settings.queries)
    _write(breakdown_table(engine, queries, settings.query, settings.sample), out)


def _new_table(name: str) -> Path:
    from pathlib import Path

    from query.results.folder import require_place

    out = Path(name)
    require_place(out)
    if out.suffix not in {".parquet", ".jsonl"}:
        raise ConfigError(f"--out is {name!r}: a table is written as NAME.parquet or NAME.jsonl.")
    if out.exists():
        raise ConfigError(f"{out} exists; nothing was changed. Choose another --out.")
    if not out.parent.is_dir():
        raise ConfigError(f"--out is {name!r}, but there is no folder {out.parent}. Make it first.")
    return out


def _write(table: Any, out: Path) -> None:
    from query.results.table import shown, write_table

    write_table(table, out, table.schema)
    say(shown(table))
    say(f"wrote {out}")
