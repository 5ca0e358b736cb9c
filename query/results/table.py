"""Conversion of answers to tables, and of tables to files."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from gradstore.store.format.columns import at
from gradstore.text import one_line
from query.results.answer import labels, timesteps
from query.results.ranks import agreement, rank_intervals
from query.results.writing import written

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray

    from query.results.answer import Answer


def to_table(answers: Sequence[Answer]) -> pa.Table:
    """Convert answers to a table with one row per query, measure, side and rank.

    An opponent with a positive score did not push against the query: it pushed least.

    Columns: `query_id`, `query_label`, `measure`, `side` (proponent or opponent), `rank` (from 1),
    `sample_id`, `label`, `score` (float32), `timesteps` (of all the sample's slots at the first
    checkpoint, then at the second, …), `rank_low` and `rank_high` (between which ranks of this list
    the sample may stand; see `rank_intervals`), `projection_error`, `query_error`, `query_margin`,
    `training_error`, `margin` and `z` (float32; see `Explanation`), `agreement` of the checkpoints
    (float32, 0 … 1), `parts` (float32, each checkpoint's part of the score).

    Examples:
        >>> import gradstore as gs
        >>> answers = [
        ...     gs.search("train.gradstore", "asked.gradstore", 3, measure=name)
        ...     for name in ("tracin", "retrac")
        ... ]
        >>> gs.to_table(answers).num_rows  # 2 measures, 3 queries, 3 samples on each side
        36
    """
    import pyarrow as pa

    # Label columns differ in type if only some answers have labels.
    return pa.concat_tables([_table(one) for one in answers], promote_options="permissive")


def _table(answer: Answer) -> pa.Table:
    import pyarrow as pa

    store, queries = answer.store, answer.queries
    sides = list(answer.sides)
    rows = np.stack([side.samples for side in answer.sides.values()], axis=1)
    count, _, k = rows.shape
    steps = timesteps([answer])
    # Values are looked up once per sample, then repeated with `take`.
    found = np.array(list(steps))
    here = pa.array(np.searchsorted(found, rows.ravel()))
    asked = pa.array(np.repeat(np.arange(count), len(sides) * k))
    train_labels = labels(store)

    def of_samples(values: list[Any], kind: pa.DataType | None = None) -> pa.Array:
        return pa.array(values, kind).take(here)

    def of_queries(values: Sequence[Any], kind: pa.DataType | None = None) -> pa.Array:
        return pa.array(list(values), kind).take(asked)

    numbers = list(steps)
    parts = answer.explained.parts.reshape(rows.size, -1)
    edges = np.arange(rows.size + 1, dtype=np.int32) * parts.shape[1]
    scores = np.stack([side.scores for side in answer.sides.values()], axis=1)
    figures = {name: values.ravel() for name, values in figures_of(answer).items()}
    return pa.table(
        {
            "query_id": of_queries(queries.ids, pa.string()),
            "query_label": of_queries(queries.labels or [None] * count),
            "measure": pa.array([answer.measure] * rows.size, pa.string()),
            "side": np.tile(np.repeat(sides, k), count),
            "rank": np.tile(np.arange(1, k + 1), count * len(sides)),
            "sample_id": of_samples(at(store.manifest.ids, numbers), pa.string()),
            "label": of_samples(
                at(train_labels, numbers) if train_labels else [None] * len(numbers)
            ),
            "score": scores.ravel(),
            "timesteps": of_samples(list(steps.values()), pa.list_(pa.int64())),
            "rank_low": figures["rank_low"],
            "rank_high": figures["rank_high"],
            "projection_error": figures["projection_error"],
            "query_error": _known(figures["query_error"]),
            "query_margin": _known(figures["query_margin"]),
            "training_error": _known(figures["training_error"]),
            "margin": figures["margin"],
            "z": figures["z"],
            "agreement": _known(figures["agreement"]),
            "parts": pa.ListArray.from_arrays(edges, pa.array(parts.ravel())),
        }
    )


def figures_of(answer: Answer) -> dict[str, NDArray[Any]]:
    """What is known of each score, by the name of its column in `to_table`.

    Returns:
        `[queries, sides, k]`, float32, and int64 for ranks; NaN where unknown.
    """
    explained, k = answer.explained, answer.proponents.samples.shape[1]
    everyone = slice(None)
    intervals = [
        rank_intervals(sign * side.scores, explained.only(everyone, start + np.arange(k)))
        for side, start, sign in ((answer.proponents, 0, 1), (answer.opponents, k, -1))
    ]
    low, high = (np.concatenate(both, axis=1) for both in zip(*intervals, strict=True))
    figures: dict[str, NDArray[Any]] = {
        "rank_low": low,
        "rank_high": high,
        "projection_error": explained.projection_error,
        "query_error": explained.query_error,
        "query_margin": explained.query_margin,
        "training_error": explained.training_error,
        "margin": explained.margin,
        "z": explained.z,
        "agreement": agreement(explained.parts),
    }
    return {name: values.reshape(len(answer), -1, k) for name, values in figures.items()}


def _known(values: NDArray[np.float32]) -> pa.Array:
    """Values of a column; what is unknown (NaN) is null."""
    import pyarrow as pa

    return pa.array(values, from_pandas=True)


def write_table(table: pa.Table | Iterable[pa.Table], path: Path, schema: pa.Schema) -> None:
    """Write tables, concatenated, to one `.parquet` or `.jsonl` file.

    In JSON, each row is one line, and non-finite numbers are `null`. The file is written under a
    temporary name and renamed.

    Args:
        table: the tables.
        path: the file; its suffix selects the format.
        schema: common schema of the tables.

    Raises:
        QueryError: if it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [table] if isinstance(table, pa.Table) else table
    with written(path) as writing:
        if path.suffix == ".jsonl":
            with writing.open("w", encoding="utf-8") as file:
                for one in tables:
                    for row in one.to_pylist():
                        file.write(json.dumps(_finite(row), ensure_ascii=False) + "\n")
        else:
            with pq.ParquetWriter(writing, schema) as writer:
                for one in tables:
                    writer.write_table(one.select(schema.names).cast(schema))


def shown(table: pa.Table, rows: int = 10) -> str:
    """Format the first rows of a table as text, with the number of further rows."""
    first = [table.column_names, *(list(row.values()) for row in table.slice(0, rows).to_pylist())]
    texts = [
        [f"{value:.4g}" if isinstance(value, float) else one_line(str(value)) for value in row]
        for row in first
    ]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in texts
    ]
    more = len(table) - rows
    return "\n".join([*lines, f"… and {more:,} more"] if more > 0 else lines)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
