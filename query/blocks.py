"""Answers to any number of queries in bounded memory: block by block, each stored when done."""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING, Any, Final

from gradstore.errors import QueryError
from gradstore.store.format.parquet import open_bounded
from indexer import measure_of
from query.queries import Queries
from query.results.table import to_table, write_table
from query.results.writing import named
from query.searching import search

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from gradstore.store.reader import Store
    from indexer import ExactEngine, Measure, SearchIndex
    from query.results.answer import Answer

# Memory for a block's queries: copies of their features in the search, and one kilobyte of results
# per sample found.
_BLOCK_BYTES: Final = 2**29
_FEATURE_COPIES: Final = 4
_FOUND_BYTES: Final = 1024


def block_size(engine: SearchIndex | ExactEngine, k: int, slots: int = 0) -> int:
    """Number of queries that together take about half a GiB.

    Args:
        engine: the engine.
        k: number of samples found on each side.
        slots: slots of the queries, if their noise is to be known, which takes a feature for each.
    """
    feature = 4 * (_FEATURE_COPIES + slots) * engine.features.dim(engine.store)
    return max(1, _BLOCK_BYTES // (feature + 2 * k * _FOUND_BYTES))


def batches(
    engine: SearchIndex | ExactEngine,
    queries: Store | Queries,
    k: int = 10,
    *,
    measure: Measure | str | None = None,
    keep: NDArray[np.int64] | None = None,
    size: int | None = None,
) -> Iterator[Answer]:
    """Yield answers to any number of queries in blocks, in query order.

    The answers equal those of one `search` over all queries, but memory does not grow with their
    number.

    Args:
        engine: see `search`; the same holds for `queries`, `k`, `measure` and `keep`.
        queries: a complete query store, or sums of its samples.
        k: number of proponents and number of opponents.
        measure: by default the engine's.
        keep: ascending numbers of the training samples to search; by default all.
        size: queries per block; by default as many as take about half a GiB.

    Yields:
        One answer per block; `answer.queries.ids` holds its query ids.

    Raises:
        GradstoreError: as raised by `search`.

    Examples:
        >>> import gradstore as gs
        >>> engine = gs.ExactEngine("train.gradstore", "retrac")
        >>> for answer in gs.batches(engine, gs.open_store("asked.gradstore"), 3, size=2):
        ...     print(answer.queries.ids)
        ['cat/0.png', 'cat/2.png']
        ['dog/1.png']
    """
    queries = queries if isinstance(queries, Queries) else Queries.of(queries)
    size = size or block_size(engine, k, queries.store.slots)
    if measure is not None:
        measure = measure_of(measure).fitted(engine.store)  # once, not for every block
    for start in range(0, len(queries), size):
        part = queries.part(start, start + size)
        yield search(engine, part, k, measure=measure, keep=keep)


class Blocks:
    """Tables of answers in a folder, one file per block, which persist if the process ends.

    Each file is written under a temporary name and renamed, so a file with a block's name is whole.

    Args:
        folder: folder of the files.
        made_from: everything the answers depend on. Blocks made from anything else are deleted,
            because they are parts of obsolete answers.
    """

    def __init__(self, folder: Path, made_from: dict[str, Any]) -> None:
        self._folder = folder
        text = json.dumps(made_from, sort_keys=True)
        name = folder / "made_from.json"
        if folder.exists() and not (name.is_file() and name.read_text("utf-8") == text):
            shutil.rmtree(folder)
        with named(folder):
            folder.mkdir(exist_ok=True)
            name.write_text(text, encoding="utf-8")

    def _file(self, measure: int, start: int) -> Path:
        return self._folder / f"{measure:04d}-{start:012d}.parquet"

    def has(self, measure: int, start: int) -> bool:
        """Whether a block exists, given the position of its measure and its first query."""
        return self._file(measure, start).exists()

    def write(self, measure: int, start: int, answer: Answer) -> None:
        """Write a block."""
        table = to_table([answer])
        write_table(table, self._file(measure, start), table.schema)

    def tables(self) -> Iterator[pa.Table]:
        """Yield the blocks, by measure and then in query order."""
        for file in self._files():
            with file.open("rb") as source:
                yield open_bounded(source, shared=False).read()

    def schema(self) -> pa.Schema:
        """Common schema of all blocks; the label type differs in blocks without labels.

        Raises:
            QueryError: if the blocks have no common schema.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        schemas = [pq.read_schema(file) for file in self._files()]
        try:
            return pa.unify_schemas(schemas, promote_options="permissive")
        except pa.ArrowException as error:
            raise QueryError(f"labels of several types do not fit in a table: {error}") from error

    def remove(self) -> None:
        """Delete all blocks."""
        shutil.rmtree(self._folder)

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*-*.parquet"))


def made_from(
    engine: SearchIndex | ExactEngine,
    queries: Queries,
    measure: str,
    *,
    keep: NDArray[np.int64] | None,
) -> dict[str, Any]:
    """Everything an engine's answers depend on, as hashes, in JSON form."""
    digest = hashlib.sha256(queries.store.root)
    for array in (queries.samples, queries.weights, queries.starts):
        digest.update(array.tobytes())
    spec = getattr(engine, "spec", None)
    return {
        "store": hashlib.sha256(engine.store.root).hexdigest(),
        "samples": engine.store.samples,
        "queries": digest.hexdigest(),
        "measure": measure,
        "etas": list(engine.features.etas),
        "matched": engine.features.slots is not None,
        "index": None if spec is None else spec.sha256,
        "keep": None if keep is None else hashlib.sha256(keep.tobytes()).hexdigest(),
    }
