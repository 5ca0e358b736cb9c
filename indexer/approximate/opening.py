"""Opening an index, and refusing one that was built from other inputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gradstore.errors import (
    SearchIndexError,
)
from gradstore.store.opening import as_store
from indexer.approximate.factory import most_bytes, recorded
from indexer.approximate.first_stage import FirstStage
from indexer.approximate.index import SearchIndex
from indexer.approximate.spec import (
    SPEC_NAME,
    VECTORS_NAME,
    IndexSpec,
    built_from,
    update,
)
from indexer.artifact import differing, read_spec, require_file
from indexer.feature import Features
from indexer.measures.registry import indexed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradstore.store.opening import StoreLike
    from gradstore.store.reader import Store
    from indexer.measure import Measure


def open_index(
    path: str | Path,
    store: StoreLike,
    measure: Measure | str,
    *,
    etas: Sequence[float] | None = None,
    matched: bool = False,
    factory: str | None = None,
) -> SearchIndex:
    """Open an index built from this store, measure and checkpoint weights.

    Args:
        path: the index's folder.
        store: the store it was built from.
        measure: a measure or its name.
        etas: checkpoint weights η_k; by default the store's.
        matched: whether slots are matched by timestep.
        factory: required encoding of the vectors; by default any.

    Raises:
        SearchIndexError: if the index is missing, damaged, or built from other inputs.

    Examples:
        >>> import gradstore as gs
        >>> built = gs.build_index("train.gradstore", "retrac", "fast.index")
        >>> gs.open_index("fast.index", "train.gradstore", "retrac")
        SearchIndex('fast.index', measure='retrac', samples=7, dim=64)
    """
    store = as_store(store)
    path = Path(path)
    measure = indexed(measure)
    features = Features.of(store, measure, etas=etas, matched=matched)
    mend = f"Remove {path} and build it again: {update(store, features)}"
    spec = read_spec("index", path, SPEC_NAME, IndexSpec, update(store, features))
    expected = built_from(store, features, recorded(factory) if factory else spec.factory)
    name = differing(spec, expected)
    if name == "samples":
        raise SearchIndexError(
            f"index {path} was built from {spec.count:,} samples; {store.location} has "
            f"{store.samples:,} now, and not the same. Update the index: "
            f"{update(store, features)}"
        )
    if name is not None:
        raise SearchIndexError(
            f"index {path} was built from something else: {name} is {getattr(spec, name)!r}, but "
            f"{store.location} needs {getattr(expected, name)!r}. {mend}"
        )
    if spec.count != store.samples:
        raise SearchIndexError(
            f"index {path} is damaged: it says that it holds {spec.count:,} vectors of "
            f"{store.samples:,} samples. {mend}"
        )
    return SearchIndex(path, spec, store, features, _read(path, spec, store, features))


def _read(path: Path, spec: IndexSpec, store: Store, features: Features) -> FirstStage:
    mend = f"Remove {path} and build it again: {update(store, features)}"
    file = path / VECTORS_NAME
    try:
        require_file(file, spec.sha256, most_bytes(spec.factory, spec.dim, spec.count))
        lists = max(spec.count, spec.dim)
        stage = FirstStage.read(file, features, spec.measured.query_bits, lists)
    except (OSError, RuntimeError, MemoryError) as error:
        raise SearchIndexError(
            f"index {path} is damaged: {VECTORS_NAME} cannot be read: {error}. {mend}"
        ) from error
    if len(stage) != spec.count or stage.dim != spec.dim:
        raise SearchIndexError(
            f"index {path} is damaged: it holds {len(stage)} vectors of length {stage.dim}, "
            f"not {spec.count} of {spec.dim}. {mend}"
        )
    return stage
