"""Search indexes: features of a store under one measure, in FAISS.

An index is a folder `NAME.MEASURE.index` with `vectors.faiss`, `index.json`, which says what it
was built from, and `samples.parquet`, whose vectors they are. It is refused for any other store,
and for the same store after samples were added or deleted; then it can be brought up to date.
"""

from __future__ import annotations

import json
import shutil
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from uuid import uuid4

import numpy as np
from pydantic import Field, ValidationError

from gradstore.errors import DependencyError, QueryError, SearchIndexError, StoreError
from gradstore.manifest import Manifest
from gradstore.objects import objects_at
from gradstore.progress import progress
from gradstore.spec import Identity, Spec
from indexer.feature import checked_etas, feature_dim, features
from indexer.measures import Measure, measure_of
from indexer.precondition import QuerySide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gradstore.reader import Store

FORMAT_VERSION: Final = 1
SPEC_NAME = "index.json"
VECTORS_NAME = "vectors.faiss"
SAMPLES_NAME = "samples.parquet"


class IndexSpec(Spec):
    """What an index was built from, `index.json`.

    Attributes:
        format_version: version of the index format.
        fingerprint: fingerprint of the store.
        samples: hash of ids and digests, in row order.
        measure: identity of the measure.
        etas: checkpoint weights η_k.
        factory: FAISS factory string. `Flat` is exact.
        count: number of vectors.
        dim: length of a vector.
    """

    format_version: Literal[1] = FORMAT_VERSION
    fingerprint: str
    samples: str
    measure: Identity
    etas: list[float]
    factory: Literal["Flat"] = "Flat"
    count: Annotated[int, Field(ge=1)]
    dim: Annotated[int, Field(ge=1)]


class SearchIndex:
    """An index in memory, ready to search.

    Attributes:
        path: its folder.
        spec: what it was built from.
        store: the store that it was built from.
        measure: the measure that it was built for.
    """

    def __init__(
        self, path: Path, spec: IndexSpec, store: Store, measure: Measure, vectors: Any
    ) -> None:
        self.path = path
        self.spec = spec
        self.store = store
        self.measure = measure
        self._vectors = vectors

    def __repr__(self) -> str:
        return (
            f"SearchIndex({str(self.path)!r}, measure={self.measure.name!r}, "
            f"samples={self.spec.count}, dim={self.spec.dim})"
        )

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return (self.path / VECTORS_NAME).stat().st_size

    def require_k(self, k: int) -> None:
        """Raise `QueryError` unless there are `k` samples to find."""
        if not 1 <= k <= self.spec.count:
            raise QueryError(
                f"k is {k}, but {self.store.location} holds {self.spec.count} samples. Use --k "
                f"{self.spec.count} or fewer."
            )

    def search(
        self, queries: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The `k` training samples of highest influence on each query.

        For opponents, search with `-queries` and negate the scores.

        Args:
            queries: features, float32 `[queries, dim]`.
            k: how many.

        Returns:
            Scores, highest first, and row numbers in the store, both `[queries, k]`.

        Raises:
            QueryError: if `k` is larger than the store, or the features have another length.
        """
        self.require_k(k)
        if not self.store.is_current():
            raise SearchIndexError(
                f"{self.store.location} changed since index {self.path} was opened: samples may "
                f"have been deleted. Bring it up to date: {_update(self.store, self.measure)}"
            )
        if queries.ndim != 2 or queries.shape[1] != self.spec.dim:
            raise QueryError(
                f"the queries have shape {queries.shape}, but {self.path} holds vectors of length "
                f"{self.spec.dim}. Make them with indexer.features."
            )
        scores, rows = self._vectors.search(np.ascontiguousarray(queries, np.float32), k)
        if (rows < 0).any():  # what FAISS gives where a feature is not finite
            raise SearchIndexError(
                f"index {self.path} or the queries hold values that are not finite. Run `gradstore "
                f"verify {self.store.location}`, remove the index and build it again."
            )
        return scores, rows


def index_path(store: Store, measure: Measure | str) -> Path:
    """Where the index of a store under a measure stands unless told otherwise."""
    name = f"{store.name}.{_indexed(measure).name.replace(':', '-')}.index"
    # FAISS reads files: the index of a store under a URL stands in the current folder.
    return Path(name) if store.objects.remote else store.path.with_name(name)


def build_index(
    store: Store,
    measure: Measure | str,
    path: str | Path | None = None,
    *,
    etas: Sequence[float] | None = None,
) -> SearchIndex:
    """Build the index of a store under a measure, or open the one that stands there already.

    One that was built before samples were added to the store or deleted from it is brought up to
    date: vectors of what is gone are removed, and only what is new is read.

    Args:
        store: a complete store.
        measure: a measure, or its name.
        path: the index's folder; by default beside the store.
        etas: checkpoint weights η_k; by default the store's.

    Raises:
        UnsealedError: if the store is not complete.
        SearchIndexError: if another index stands at `path`; it is not changed.
    """
    measure = _indexed(measure)
    path = Path(path) if path is not None else index_path(store, measure)
    store.require_complete()
    measure = measure.fitted(store)
    spec = _spec(store, measure, etas)
    faiss = _faiss()
    if path.exists():
        vectors, start = _outdated(path, spec, store, measure)
        if vectors is None:
            return open_index(path, store, measure, etas=etas)
    else:
        vectors = faiss.index_factory(spec.dim, spec.factory, faiss.METRIC_INNER_PRODUCT)
        start = 0
    with progress(spec.count - start, f"indexing {measure.name}", "samples") as bar:
        for low, high in store.blocks():
            if high > start:
                block = features(store, measure, max(low, start), high, etas=etas)
                vectors.add(block)
                bar.update(len(block))
    # Built beside and renamed: a half-written index never has an index's name.
    building = path.with_name(f".{path.name}.building-{uuid4().hex}")
    old = path.with_name(f".{path.name}.old-{uuid4().hex}")
    try:
        building.mkdir(parents=True)
        faiss.write_index(vectors, str(building / VECTORS_NAME))
        samples = Manifest(store.manifest.ids, store.manifest.digests)
        (building / SAMPLES_NAME).write_bytes(samples.content())
        (building / SPEC_NAME).write_text(spec.model_dump_json(indent=2) + "\n")
        if path.exists():
            path.rename(old)
        building.rename(path)
    except (OSError, RuntimeError) as error:
        raise SearchIndexError(
            f"index {path} cannot be written: {error}. Make room or choose another place, and run "
            "the same command again."
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return SearchIndex(path, spec, store, measure, vectors)


def _outdated(path: Path, spec: IndexSpec, store: Store, measure: Measure) -> tuple[Any, int]:
    """An index of the store as it was, without the vectors of what is gone, and how many are left.

    Samples keep their order whatever is done to a store, and new ones come last: so the vectors
    that are left are those of the store's first samples.

    Returns:
        None if the index is up to date or of something else, which `open_index` tells.
    """
    try:
        files = objects_at(path)
        found = IndexSpec.model_validate_json(files.read(SPEC_NAME))
        alike = found.model_copy(update={"samples": spec.samples, "count": spec.count}) == spec
        if not alike or found.samples == spec.samples:
            return None, 0
        was = Manifest.parse(
            files.read(SAMPLES_NAME), where=str(path / SAMPLES_NAME), samples=found.count
        )
    except (OSError, ValueError, StoreError):
        return None, 0
    now = list(zip(store.manifest.ids, store.manifest.digests, strict=True))
    kept, gone = 0, []
    for row, sample in enumerate(zip(was.ids, was.digests, strict=True)):
        if kept < len(now) and now[kept] == sample:
            kept += 1
        else:
            gone.append(row)
    vectors = _vectors(path, found, store, measure)
    if gone:
        vectors.remove_ids(np.array(gone, np.int64))
    return vectors, kept


def open_index(
    path: str | Path,
    store: Store,
    measure: Measure | str,
    *,
    etas: Sequence[float] | None = None,
) -> SearchIndex:
    """Open an index that was built from this store, measure and checkpoint weights.

    Raises:
        SearchIndexError: if there is none, it is damaged, or it was built from something else.
    """
    path = Path(path)
    measure = _indexed(measure).fitted(store)
    expected = _spec(store, measure, etas)
    mend = f"Remove {path} and build it again: {_update(store, measure)}"
    if not path.exists():
        raise SearchIndexError(f"there is no index {path}. Build it: {_update(store, measure)}")
    try:
        spec = IndexSpec.model_validate_json(objects_at(path).read(SPEC_NAME))
    except (OSError, ValidationError) as error:
        raise SearchIndexError(
            f"{path} exists and is not a whole index ({SPEC_NAME} is missing or damaged). {mend}"
        ) from error
    # The samples last: what differs in nothing else can be brought up to date.
    for name in sorted(IndexSpec.model_fields, key=("samples", "count").count):
        found, wanted = getattr(spec, name), getattr(expected, name)
        if found != wanted and name in {"samples", "count"}:
            raise SearchIndexError(
                f"index {path} was built from {spec.count:,} samples; {store.location} has "
                f"{expected.count:,} now, and not the same. Bring it up to date: "
                f"{_update(store, measure)}"
            )
        if found != wanted:
            raise SearchIndexError(
                f"index {path} was built from something else: {name} is {found!r}, but "
                f"{store.location} needs {wanted!r}. {mend}"
            )
    return SearchIndex(path, spec, store, measure, _vectors(path, spec, store, measure))


def _indexed(measure: Measure | str) -> Measure:
    """The measure of the vectors: a preconditioned one changes the queries alone."""
    given = measure_of(measure)
    return given.indexed if isinstance(given, QuerySide) else given


def _vectors(path: Path, spec: IndexSpec, store: Store, measure: Measure) -> Any:
    mend = f"Remove {path} and build it again: {_update(store, measure)}"
    file = path / VECTORS_NAME
    try:
        if not file.is_file():  # a pipe would keep FAISS waiting for ever
            raise RuntimeError("it is not a regular file")
        vectors = _faiss().read_index(str(file))
    except RuntimeError as error:
        raise SearchIndexError(
            f"index {path} is damaged: {VECTORS_NAME} cannot be read. {mend}"
        ) from error
    if vectors.ntotal != spec.count or vectors.d != spec.dim:
        raise SearchIndexError(
            f"index {path} is damaged: it holds {vectors.ntotal} vectors of length {vectors.d}, "
            f"not {spec.count} of {spec.dim}. {mend}"
        )
    return vectors


def _update(store: Store, measure: Measure) -> str:
    return f"gradstore index --store {store.location} --measures {measure.name}"


def _spec(store: Store, measure: Measure, etas: Sequence[float] | None) -> IndexSpec:
    content = json.dumps([list(store.manifest.ids), list(store.manifest.digests)])
    return IndexSpec(
        fingerprint=store.spec.fingerprint,
        samples=blake2b(content.encode(), digest_size=16).hexdigest(),
        measure=measure.identity(),
        etas=checked_etas(store, etas),
        count=store.samples,
        dim=feature_dim(store),
    )


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise DependencyError(
            f"FAISS cannot be imported ({error}). Install one of its two builds: `pip install "
            "'gradstore[cpu]'`, or `pip install 'gradstore[gpu]'` on a machine with an NVIDIA GPU."
        ) from error
    return faiss


def faiss_description() -> str:
    """Version, CPU instructions and number of GPUs of the FAISS build at hand."""
    faiss = _faiss()
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    return f"{faiss.get_compile_options().strip()}, {gpus} GPUs"
