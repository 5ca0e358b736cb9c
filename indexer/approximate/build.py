"""Building and updating an index.

An index is a folder `NAME.MEASURE.index` with `vectors.faiss`, `index.json`, which records what it
was built from and its measured recall, and `samples.parquet`, which lists the indexed samples. It
is refused for any other store. It is also refused for the same store after samples are added or
deleted, until it is updated.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gradstore.errors import ConfigError, StoreError
from gradstore.progress import progress
from gradstore.store.format.manifest import Manifest
from gradstore.store.objects.location import objects_at
from gradstore.store.opening import as_store
from indexer.approximate.crossover import exact_from
from indexer.approximate.factory import DEFAULT, estimated_bytes, most_bytes, recorded
from indexer.approximate.first_stage import FirstStage
from indexer.approximate.index import SearchIndex
from indexer.approximate.opening import _read, open_index
from indexer.approximate.recall import Recall
from indexer.approximate.spec import (
    SAMPLES_NAME,
    SPEC_NAME,
    VECTORS_NAME,
    BuiltFrom,
    IndexSpec,
    built_from,
    index_path,
)
from indexer.artifact import MOST_SPEC_BYTES, differing, exchanged, file_hash, stands
from indexer.exact.engine import ExactEngine
from indexer.feature import Features, RowWeights
from indexer.measures.registry import indexed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from gradstore.store.opening import StoreLike
    from gradstore.store.reader import Store
    from indexer.feature import Tile
    from indexer.measure import Measure


# Maximum growth in samples before the recall is measured again.
_MEASURED_UP_TO: Final = 1.25


def estimated_nbytes(
    store: StoreLike,
    measure: Measure | str,
    path: str | Path | None = None,
    *,
    etas: Sequence[float] | None = None,
    matched: bool = False,
    factory: str | None = None,
) -> int:
    """Estimate the bytes that `build_index` with the same arguments takes in memory and on disk.

    Raises:
        ConfigError: if FAISS rejects the factory string.
    """
    store = as_store(store)
    if path is None:
        path = index_path(store, measure, etas=etas, matched=matched)
    width = store.dim * (store.slots if matched else 1)
    return estimated_bytes(_factory(factory, Path(path)), width, store.samples)


def build_index(
    store: StoreLike,
    measure: Measure | str,
    path: str | Path | None = None,
    *,
    etas: Sequence[float] | None = None,
    matched: bool = False,
    factory: str | None = None,
    queries: Store | None = None,
) -> SearchIndex:
    """Build the index of a store under a measure, or open the existing one.

    An index built before samples were added or deleted is updated: vectors of deleted samples are
    removed, and only new samples are read.

    Args:
        store: a complete store.
        measure: a measure or its name.
        path: the index's folder; by default `index_path`.
        etas: checkpoint weights η_k; by default the store's.
        matched: match slots by timestep.
        factory: encoding of the vectors: one of `factory.NAMES`, or a string for FAISS's
            `index_factory`; by default that of the existing index, else one bit per dimension.
        queries: query store used to measure the recall; by default training samples.

    Raises:
        UnsealedError: if the store is not complete.
        SearchIndexError: if a different index exists at `path`; it is left unchanged.

    Examples:
        >>> import gradstore as gs
        >>> index = gs.build_index("train.gradstore", "retrac")
        >>> index.path.name, index.spec.count
        ('train.retrac.index', 7)
    """
    store = as_store(store)
    measure = indexed(measure)
    if path is None:
        path = index_path(store, measure, etas=etas, matched=matched)
    path = Path(path)
    store.require_complete()
    features = Features.of(store, measure, etas=etas, matched=matched)
    standing = stands(path)
    factory = _factory(factory, path)
    wanted = built_from(store, features, factory)
    if standing:
        stage, start, was = _outdated(path, wanted, store, features)
        if stage is None:
            return open_index(path, store, measure, etas=etas, matched=matched, factory=factory)
    else:
        stage, start, was = FirstStage.empty(factory, store, features), 0, None
    measured = None if was is None else was.measured
    recall = Recall(store, features, queries) if measured is None else None
    # Read once for this pass, the recall measurement, and later searches.
    weights = RowWeights(store, features) if recall is not None else None
    _fill(stage, start, store, features, recall=recall, weights=weights)
    known = None if was is None else was.exact_from
    if recall is not None:
        measured = recall.of(stage)
        engine = ExactEngine(store, features, weights)
        known = exact_from(engine, measured.candidates, recall.vector_seconds)
    with exchanged("index", path) as building:
        stage.write(building / VECTORS_NAME)
        _require_readable(building / VECTORS_NAME, wanted, store.samples)
        spec = IndexSpec(
            **wanted.model_dump(),
            count=store.samples,
            measured=measured,
            exact_from=known,
            sha256=file_hash(building / VECTORS_NAME),
        )
        samples = Manifest(store.manifest.ids, store.manifest.digests)
        (building / SAMPLES_NAME).write_bytes(samples.content())
        (building / SPEC_NAME).write_text(spec.model_dump_json(indent=2) + "\n")
    return SearchIndex(path, spec, store, features, stage, weights=weights)


def _fill(
    stage: FirstStage,
    start: int,
    store: Store,
    features: Features,
    *,
    recall: Recall | None,
    weights: RowWeights | None,
) -> None:
    """Add the samples from `start` on to a first stage in one pass."""

    def work(samples: NDArray[np.int64], tiles: Iterator[Tile]) -> list[NDArray[Any]]:
        encoded = []

        def passing() -> Iterator[Tile]:
            for here, parts in tiles:
                new = max(0, start - int(samples[here.start]))
                if new < here.stop - here.start:
                    left = {p: (one[new:], scale[new:]) for p, (one, scale) in parts.items()}
                    encoded.append(stage.encoded(left))
                yield here, parts

        if recall is not None:
            recall.add(samples, passing())
        else:
            deque(passing(), maxlen=0)
        return encoded

    measure = features.measure.name
    with progress(store.samples - start, f"indexing {measure}", "samples") as bar:
        first = 0 if recall is not None else start
        for _, made in features.each(store, work, start=first, weights=weights):
            for encoded in made:
                stage.add(encoded)
                bar.update(len(encoded))


def _require_readable(file: Path, wanted: BuiltFrom, samples: int) -> None:
    """Raise `ConfigError` if a file is longer than one that is read again may be."""
    nbytes, most = file.stat().st_size, most_bytes(wanted.factory, wanted.dim, samples)
    if nbytes > most:
        raise ConfigError(
            f"an index {wanted.factory!r} of {samples:,} samples takes {nbytes:,} bytes, more than "
            f"the {most:,} that may be read again. Use another --factory, such as rabitq."
        )


def _factory(given: str | None, path: Path) -> str:
    """Encoding of the vectors: `given`, else that of the existing index, else one bit."""
    if given is not None:
        return recorded(given)
    try:
        return IndexSpec.model_validate_json(
            objects_at(path).read(SPEC_NAME, MOST_SPEC_BYTES)
        ).factory
    except (OSError, ValueError, StoreError):
        return DEFAULT


def _outdated(
    path: Path, wanted: BuiltFrom, store: Store, features: Features
) -> tuple[FirstStage | None, int, IndexSpec | None]:
    """Read an outdated index and remove the vectors of deleted samples.

    All changes to a store preserve the order of its samples and append new ones. The remaining
    vectors are therefore those of the store's first samples.

    Returns:
        The first stage, its number of vectors, and its specification, whose measurements still
        hold. The specification is None if so many samples were added that the index must be
        measured again. The first stage is None if the index is up to date or was built from other
        inputs; `open_index` tells these cases apart.
    """
    try:
        files = objects_at(path)
        found = IndexSpec.model_validate_json(files.read(SPEC_NAME, MOST_SPEC_BYTES))
        if differing(found, wanted) != "samples":
            return None, 0, None
        was = Manifest.parse(
            files.read(SAMPLES_NAME, Manifest.most_bytes(found.count)),
            where=str(path / SAMPLES_NAME),
            samples=found.count,
        )
    except (OSError, ValueError, StoreError):
        return None, 0, None
    now = zip(store.manifest.ids, store.manifest.digests, strict=True)
    expected, kept, gone = next(now, None), 0, []
    for row, sample in enumerate(zip(was.ids, was.digests, strict=True)):
        if sample == expected:
            expected, kept = next(now, None), kept + 1
        else:
            gone.append(row)
    stage = _read(path, found, store, features)
    if gone and not stage.remove(np.array(gone, np.int64)):
        return FirstStage.empty(wanted.factory, store, features), 0, None
    if store.samples > _MEASURED_UP_TO * found.measured.samples:
        return stage, kept, None
    return stage, kept, found
