"""All scores of all queries: a matrix that the exact engine writes while it streams the store.

NAME.zarr/
zarr.json       attribute `gradstore_scores`: what the scores were made from
scores          [query, sample]  float32; NaN (the fill value) marks scores not computed yet
query_id        [query]          string
sample_id       [sample]         string
done            [block of queries, block of samples]  bool: whether the block is computed
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gradstore import __version__
from gradstore.errors import QueryError
from gradstore.progress import progress
from gradstore.store import locks
from gradstore.store.objects.location import objects_at
from indexer import measure_of
from query.blocks import made_from
from query.checks import require_collected, require_comparable
from query.queries import Queries
from query.results.folder import require_place
from query.results.writing import alone, link_in, lock_of, named, temporary, written
from query.searching import prepared

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa
    import zarr
    from numpy.typing import NDArray

    from gradstore.store.reader import Store
    from indexer import ExactEngine, Measure

ATTRIBUTE: Final = "gradstore_scores"
# What the name of a table's temporary matrix ends with.
_BESIDE: Final = ".zarr"
# A chunk is 4 MB. A block consists of whole chunks, and the bytes held at once are bounded.
_CHUNK: Final = (64, 1 << 14)
_MOST_QUERIES: Final = 4096
_FEATURE_BYTES: Final = 2**29
_ROW_BYTES: Final = 2**28
_MOST_METADATA: Final = 1 << 20


def write_scores(
    engine: ExactEngine,
    queries: Store | Queries,
    out: Path,
    *,
    measure: Measure | str | None = None,
) -> None:
    """Write the influence of every training sample on every query, in float32.

    Memory does not grow with either number. Resumes if interrupted, at whole blocks of at most
    4,096 queries × 16,384 samples.

    Args:
        engine: the exact engine of the training store.
        queries: a complete query store, or sums of its samples.
        out: `NAME.zarr`, the matrix; or `NAME.parquet`, one row per query and sample, made from a
            temporary matrix beside it.
        measure: another measure that the engine serves, such as `trak`; by default its own.

    Raises:
        QueryError: if `out` is something else or was made from other inputs; it is left unchanged.
        GradstoreError: as raised by `query.search`.

    Examples:
        >>> import gradstore as gs
        >>> from pathlib import Path
        >>> import zarr
        >>> engine = gs.ExactEngine("train.gradstore", "retrac")
        >>> gs.write_scores(engine, gs.open_store("asked.gradstore"), Path("scores.zarr"))
        >>> zarr.open_group("scores.zarr", mode="r")["scores"].shape
        (3, 7)
    """
    require_table(out)
    queries = queries if isinstance(queries, Queries) else Queries.of(queries)
    chosen = engine.features.measure if measure is None else measure_of(measure)
    require_comparable(engine.store, queries.store)  # before anything is written
    require_collected(queries.store, engine.features)
    with named(out), alone(out, lock_of(out)):
        require_table(out)  # not written by another process meanwhile
        if out.suffix == ".zarr":
            _write_matrix(engine, queries, out, chosen)
            return
        beside = out.with_name(f".{out.name}{_BESIDE}")
        if _origin(beside) not in (None, _identity(engine, queries, chosen)):
            _remove(beside)  # a killed process left it, whose inputs were others
        matrix: Any = _write_matrix(engine, queries, beside, chosen)["scores"]
        _write_table(matrix, queries.ids, engine.store.manifest.ids, out)
        _remove(beside)


def _remove(matrix: Path) -> None:
    """Remove a matrix. A half of one never has its name."""
    going = temporary(matrix)
    with alone(matrix, lock_of(going)):
        shutil.rmtree(going, ignore_errors=True)
        matrix.rename(going)
        shutil.rmtree(going)


def left_scores(store: Store, folder: Path) -> list[Path]:
    """Temporary matrices of a store's scores in a folder that killed processes left."""
    left = []
    for matrix in sorted(folder.glob(f".*.parquet{_BESIDE}")):
        made = _origin(matrix)
        own = isinstance(made, dict) and made.get("store_fingerprint") == store.spec.fingerprint
        if own and not locks.is_held(matrix.with_suffix(".lock")):
            left.append(matrix)
    return left


def require_table(out: Path) -> None:
    """Raise `QueryError` if scores cannot be written to `out`: wrong suffix, or it exists."""
    if out.suffix not in {".zarr", ".parquet"}:
        raise QueryError(f"{out}: scores are written as NAME.zarr or NAME.parquet.")
    require_place(out)
    if out.suffix == ".parquet" and out.exists():
        raise QueryError(f"{out} exists; nothing was changed. Choose another --out or remove it.")
    if out.exists() and not (out / "zarr.json").is_file():
        raise QueryError(f"{out} exists and is no Zarr group. Choose another --out.")


def _identity(engine: ExactEngine, queries: Queries, measure: Measure) -> dict[str, Any]:
    """What scores are made from, and their blocks."""
    width = 4 * 4 * engine.features.dim(engine.store)
    rows = min(_MOST_QUERIES, _FEATURE_BYTES // width) // _CHUNK[0] * _CHUNK[0]
    return {
        **made_from(engine, queries, measure.name, keep=None),
        "block": [
            min(len(queries), max(_CHUNK[0], rows)),
            min(engine.store.samples, _CHUNK[1]),
        ],
        "store_location": engine.store.location,
        "store_fingerprint": engine.store.spec.fingerprint,
        "queries_location": queries.store.location,
        "queries_fingerprint": queries.store.spec.fingerprint,
        "gradstore": __version__,
    }


def _origin(matrix: Path) -> Any:
    """What a matrix was made from; None if it is no matrix of scores."""
    if matrix.is_symlink():
        return None
    try:
        found: Any = json.loads(objects_at(matrix).read("zarr.json", _MOST_METADATA))
        return found["attributes"][ATTRIBUTE]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _require_own(matrix: Path, arrays: zarr.Group) -> None:
    """Raise `QueryError` unless a matrix has arrays described as these, and leads nowhere else.

    Zarr allocates what a description says, decodes by whatever codec it names, and follows links.
    """
    link = link_in(matrix)
    if link is not None:
        raise QueryError(
            f"{link} is a link, through which scores would be written elsewhere; nothing was "
            "changed. Choose another --out, or remove it."
        )
    for name, array in arrays.arrays():
        try:
            found = json.loads(objects_at(matrix).read(f"{name}/zarr.json", _MOST_METADATA))
        except (OSError, ValueError, RecursionError):
            found = None
        if found != json.loads(json.dumps(array.metadata.to_dict())):
            raise QueryError(
                f"{matrix}/{name} is not an array of these scores; nothing was changed. Choose "
                "another --out or remove it."
            )


def _write_matrix(engine: ExactEngine, queries: Queries, out: Path, measure: Measure) -> zarr.Group:
    import zarr
    from zarr.storage import MemoryStore

    identity = _identity(engine, queries, measure)
    size, columns = identity["block"]
    if not out.exists():
        _create(engine.store, queries, out, identity)
    if _origin(out) != identity:
        raise QueryError(
            f"{out} holds something else, or scores of other samples, queries or weights; nothing "
            "was changed. Choose another --out or remove it."
        )
    _require_own(
        out, _arrays(zarr.open_group(MemoryStore(), mode="w"), engine.store, queries, identity)
    )
    group = zarr.open_group(out, mode="r+", zarr_format=3)
    done = np.asarray(group["done"][:])  # type: ignore[index]
    spans = [
        min(size, len(queries) - size * row) * min(columns, engine.store.samples - columns * column)
        for row, column in np.argwhere(~done).tolist()
    ]
    with progress(sum(spans), f"scores of {measure.name}", "scores") as bar:
        for row in np.flatnonzero(~done.all(axis=1)).tolist():
            measure = measure.fitted(engine.store)  # fitted on first use and only once
            part = queries.part(row * size, (row + 1) * size)
            vectors, _ = prepared(engine, part, measure)
            # Blocks are written in order, so the missing blocks of a row are its last ones.
            column = int(np.argmin(done[row]))
            for low, scores in _columns(engine, vectors, column * columns, columns):
                here = slice(row * size, row * size + len(part))
                group["scores"][here, low : low + scores.shape[1]] = scores  # type: ignore[index]
                group["done"][row, low // columns] = True  # type: ignore[index]
                bar.update(scores.size)
    return group


def _create(store: Store, queries: Queries, out: Path, identity: dict[str, Any]) -> None:
    """Create the empty arrays under a temporary name and rename, so that `out` has all of them."""
    import zarr

    with written(out) as writing:
        group = zarr.open_group(writing, mode="w", attributes={ATTRIBUTE: identity}, zarr_format=3)
        arrays: dict[str, Any] = dict(_arrays(group, store, queries, identity).arrays())
        for name, ids in (("query_id", queries.ids), ("sample_id", store.manifest.ids)):
            arrays[name][:] = np.array(list(ids), dtype=object)


def _arrays(
    group: zarr.Group, store: Store, queries: Queries, identity: dict[str, Any]
) -> zarr.Group:
    """Create the empty arrays of scores in a group.

    What is read again is not compressed: a few bytes could claim to be any number.
    """
    size, columns = identity["block"]
    shape = (len(queries), store.samples)
    group.create_array(
        "scores",
        shape=shape,
        chunks=(min(_CHUNK[0], size), columns),
        dtype="float32",
        fill_value=float("nan"),
        compressors=None,
        dimension_names=("query", "sample"),
    )
    for name, count in zip(("query_id", "sample_id"), shape, strict=True):
        group.create_array(name, shape=(count,), chunks=(count,), dtype=str)
    blocks = (-(-shape[0] // size), -(-shape[1] // columns))
    group.create_array(
        "done",
        shape=blocks,
        chunks=(1, blocks[1]),
        dtype=bool,
        fill_value=False,
        compressors=None,
    )
    return group


def _columns(
    engine: ExactEngine, vectors: NDArray[np.float32], start: int, width: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield scores from sample `start` on, `width` samples at a time, as (first sample, scores)."""
    total = engine.store.samples
    keep = None if start == 0 else np.arange(start, total)
    held = np.empty((len(vectors), width), np.float32)
    for samples, scores in engine.scores(vectors, keep=keep):
        for low in range(int(samples[0]) // width * width, int(samples[-1]) + 1, width):
            here = (samples >= low) & (samples < low + width)
            held[:, samples[here] - low] = scores[:, here]
            end = min(low + width, total)
            if samples[here][-1] == end - 1:
                yield low, held[:, : end - low]


def _write_table(
    scores: zarr.Array[Any], query_ids: Sequence[str], sample_ids: Sequence[str], out: Path
) -> None:
    """Write one row per query and sample: `query_id`, `sample_id`, `score` (float32)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = {"query_id": pa.array(query_ids), "sample_id": pa.array(sample_ids)}
    queries, samples = scores.shape
    step = max(1, _ROW_BYTES // (4 * samples))

    def coded(name: str, numbers: NDArray[np.int64]) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(numbers.astype(np.int32)), ids[name])

    kind = pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema([("query_id", kind), ("sample_id", kind), ("score", pa.float32())])
    with written(out) as writing, pq.ParquetWriter(writing, schema) as writer:
        for start in range(0, queries, step):
            block = np.asarray(scores[start : start + step])
            for query, row in enumerate(block, start):
                columns = [
                    coded("query_id", np.full(samples, query)),
                    coded("sample_id", np.arange(samples)),
                    pa.array(row),
                ]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
