"""Tables beyond rankings: group totals, self-influence, and scores split by pairs of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gradstore.errors import QueryError
from gradstore.store.format.columns import at
from indexer import ExactEngine, breakdown, rollup, self_influence
from query.blocks import block_size
from query.checks import require_collected, require_comparable
from query.results.answer import labels
from query.searching import prepared

if TYPE_CHECKING:
    import pyarrow as pa

    from gradstore.store.reader import Store
    from indexer import Measure
    from query.queries import Queries


def rollup_table(
    engine: ExactEngine, queries: Queries, by: str, *, measure: Measure | None = None, top: int = 10
) -> pa.Table:
    """Influence of each group of training samples on each query; see `indexer.rollup`.

    Args:
        engine: the exact engine of the training store.
        queries: the queries.
        by: column of the training store's manifest that holds the groups.
        measure: another measure that the engine serves, such as `trak`; by default its own.
        top: number of highest scores per group in `top_mean`.

    Raises:
        QueryError: if there is no such column.
    """
    import pyarrow as pa

    metadata = engine.store.manifest.metadata
    if by not in metadata:
        known = ", ".join(sorted(metadata)) or "none"
        raise QueryError(f"{engine.store.location} has no column {by!r}; it has {known}.")
    tables = []
    size = block_size(engine, top * len(set(metadata[by])))
    for start in range(0, len(queries), size):
        part = queries.part(start, start + size)
        vectors, _ = prepared(engine, part, measure)
        tables.append(rollup(engine, vectors, metadata[by], top).to_table(part.ids))
    return pa.concat_tables(tables)


def self_influence_table(engine: ExactEngine) -> pa.Table:
    """Samples by self-influence, highest first: hard, atypical and mislabelled samples.

    Columns: `sample_id`, `label`, `self_influence` (float32), `robust_z` (distance of its logarithm
    from the median, in standard deviations estimated from the median absolute deviation; large for
    outliers, NaN for a zero gradient), `norm` (mean over rows) and `timesteps`.
    """
    import pyarrow as pa

    store = engine.store
    found = self_influence(store, engine.features)
    logarithms = np.full(len(found), np.nan)
    np.log(found, out=logarithms, where=found > 0)
    some = logarithms[found > 0]
    middle = np.median(some) if len(some) else np.nan
    spread = 1.4826 * np.median(np.abs(some - middle)) if len(some) else np.nan
    order = np.argsort(-found, kind="stable")
    own = labels(store)
    places = range(store.checkpoints)
    norms = np.mean([store.column("norm", k).mean(axis=1, dtype=np.float64) for k in places], 0)
    steps = np.concatenate([store.column("timestep", k) for k in places], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        robust = (logarithms - middle) / spread
    columns: dict[str, Any] = {
        "sample_id": at(store.manifest.ids, order),
        "label": at(own, order) if own else [None] * len(order),
        "self_influence": found[order],
        "robust_z": robust[order],
        "norm": norms[order],
        "timesteps": steps[order].tolist(),
    }
    return pa.table(columns)


def breakdown_table(engine: ExactEngine, queries: Store, query: str, sample: str) -> pa.Table:
    """Split one score by checkpoint and pair of timesteps; see `indexer.breakdown`.

    Args:
        engine: the exact engine of the training store, for a measure of rows.
        queries: the query store.
        query: id of the query.
        sample: id of the training sample.

    Returns:
        One row per pair of rows at each checkpoint of nonzero weight: `checkpoint` (its number in
        `info`), `query_timestep`, `sample_timestep`, `score` (float32). The scores sum to the
        influence.

    Raises:
        QueryError: if there is no such query or sample.
    """
    import pyarrow as pa

    store = engine.store
    require_comparable(store, queries)
    require_collected(queries, engine.features)
    rows = [_number(queries, query), _number(store, sample)]
    parts = breakdown(store, queries, engine.features, *rows)
    columns: dict[str, list[Any]] = {
        name: [] for name in ("checkpoint", "query_timestep", "sample_timestep", "score")
    }
    for place in engine.features.checkpoints:
        number = store.numbers[place]
        asked, found = (
            one.column("timestep", place, np.array([row]))[0].tolist()
            for one, row in zip((queries, store), rows, strict=True)
        )
        for left, query_step in enumerate(asked):
            for right, sample_step in enumerate(found):
                values = (number, query_step, sample_step, float(parts[place, left, right]))
                for column, value in zip(columns.values(), values, strict=True):
                    column.append(value)
    return pa.table({**columns, "score": pa.array(columns["score"], pa.float32())})


def _number(store: Store, name: str) -> int:
    row = store.manifest.row(name)
    if row is None:
        raise QueryError(f"{store.location} has no sample {name!r}.")
    return row
