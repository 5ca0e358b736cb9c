"""Search indexes: the first stage of a search, in memory, whose candidates the store decides.

An index is a folder `NAME.MEASURE.index` with `vectors.faiss`, `index.json`, which says what it
was built from and what it was measured to find, and `samples.parquet`, whose vectors they are. It
is refused for any other store, and for the same store after samples were added or deleted; then it
can be brought up to date.

What is indexed is the sum of a sample's features over checkpoints. Checkpoints are projected
independently, so what their parts have to do with each other is noise, and a vector as long as one
checkpoint's finds as good candidates as one that holds all of them, in a fraction of the bytes.
Candidates are scored again, exactly, from the store.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import deque
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from uuid import uuid4

import numpy as np
from pydantic import Field, ValidationError

from gradstore.errors import (
    QueryError,
    SearchIndexError,
    StoreError,
)
from gradstore.manifest import Manifest
from gradstore.objects import objects_at
from gradstore.progress import progress
from gradstore.spec import Identity, Spec
from indexer.choice import exact_from
from indexer.exact import ExactEngine, Ranking, best, require_k, rescored
from indexer.factory import DEFAULT, estimated_bytes, recorded
from indexer.feature import Features, RowWeights
from indexer.first_stage import FirstStage
from indexer.measures import Measure, measure_of
from indexer.precondition import QuerySide
from indexer.recall import Measured, Recall

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from gradstore.reader import Store
    from indexer.feature import Tile

FORMAT_VERSION: Final = 1
SPEC_NAME = "index.json"
VECTORS_NAME = "vectors.faiss"
SAMPLES_NAME = "samples.parquet"
# An index that grew no further than this is taken to find what it found before.
_MEASURED_UP_TO: Final = 1.25


class BuiltFrom(Spec):
    """What an index is made of, by which it is told whether it is the one that is needed.

    Attributes:
        fingerprint: fingerprint of the store.
        measure: identity of the measure.
        etas: checkpoint weights η_k.
        matched: whether slots are matched timestep by timestep.
        factory: FAISS factory string.
        dim: length of a vector.
        samples: hash of ids and digests, in row order. It comes last: what differs in nothing else
            can be brought up to date.
    """

    fingerprint: str
    measure: Identity
    etas: list[float]
    matched: bool
    factory: str
    dim: Annotated[int, Field(ge=1)]
    samples: str


class IndexSpec(BuiltFrom):
    """What an index was built from, and what it is, `index.json`.

    Attributes:
        format_version: version of the index format.
        count: number of vectors.
        measured: what it was measured to find.
        exact_from: from how many queries at once on the exact engine is taken, because it is
            faster by what building told; None if it never is.
        sha256: of `vectors.faiss`, which FAISS is given to read only if it is so.
    """

    format_version: Literal[1] = FORMAT_VERSION
    count: Annotated[int, Field(ge=1)]
    measured: Measured
    exact_from: Annotated[int, Field(ge=1)] | None = None
    sha256: str


class SearchIndex:
    """An index in memory, ready to search.

    Attributes:
        path: its folder.
        spec: what it was built from.
        store: the store that it was built from.
        features: how rows become the features that are searched.
    """

    def __init__(
        self,
        path: Path,
        spec: IndexSpec,
        store: Store,
        features: Features,
        stage: FirstStage,
        *,
        weights: RowWeights | None = None,
    ) -> None:
        self.path = path
        self.spec = spec
        self.store = store
        self.features = features
        self._stage = stage
        self._exact = ExactEngine(store, features, weights)

    def __repr__(self) -> str:
        return (
            f"SearchIndex({str(self.path)!r}, measure={self.measure.name!r}, "
            f"samples={self.spec.count}, dim={self.spec.dim})"
        )

    @property
    def measure(self) -> Measure:
        """The measure that it was built for, as it was fitted to the store."""
        return self.features.measure

    @property
    def nbytes(self) -> int:
        """Bytes on disk, which are about those in memory."""
        return (self.path / VECTORS_NAME).stat().st_size

    def search(
        self, queries: NDArray[np.float32], k: int, *, keep: NDArray[np.int64] | None = None
    ) -> tuple[Ranking, Ranking]:
        """The `k` training samples of highest and of lowest influence on each query.

        By `approximate`, or, for so many queries at once that it is faster, by the exact engine.

        Args:
            queries: features, float32 `[queries, dim]`.
            k: how many.
            keep: numbers of the samples to search, rising; by default all.

        Returns:
            Proponents and opponents.

        Raises:
            QueryError: if `k` is larger than the store, or the features have another length.
            SearchIndexError: if the store changed since it was opened.
        """
        share = 1.0 if keep is None else len(keep) / self.spec.count
        if self.spec.exact_from is not None and len(queries) >= share * self.spec.exact_from:
            self._require_searchable(queries, k, keep)
            return self._exact.search(queries, k, keep=keep)
        return self.approximate(queries, k, keep=keep)

    def approximate(
        self, queries: NDArray[np.float32], k: int, *, keep: NDArray[np.int64] | None = None
    ) -> tuple[Ranking, Ranking]:
        """`search` by the index, however many queries there are.

        Candidates come from the index, scores from the store: they are exact, in float32. Which
        samples are found is not quite: `spec.measured` tells the recall.

        Args:
            queries: features, float32 `[queries, dim]`.
            k: how many.
            keep: numbers of the samples to search, rising; by default all.

        Returns:
            Proponents and opponents.

        Raises:
            QueryError: if `k` is larger than the store, or the features have another length.
            SearchIndexError: if the store changed since it was opened.
        """
        self._require_searchable(queries, k, keep)
        left = self.spec.count if keep is None else len(keep)
        count = min(left, max(self.spec.measured.candidates, 2 * k))
        # Both ends at once: FAISS gives each query a thread, and threads share what they read.
        found_twice = self._stage.search(np.concatenate([queries, -queries]), count, keep)
        high, low = np.split(found_twice, 2)
        both = np.concatenate([high, low], axis=1)
        scores = rescored(self.store, self.features, queries, both, self._exact.weights)
        sides = []
        for sign, rows, exact in zip(
            (1, -1), (high, low), np.split(scores, 2, axis=1), strict=True
        ):
            found = best(np.where(rows < 0, -np.inf, sign * exact).astype(np.float32), rows, k)
            if (found.rows < 0).any():
                raise SearchIndexError(
                    f"index {self.path} ({self.spec.factory}) looks at a part of itself and found "
                    f"fewer than {k} samples. Ask for fewer, or build another: "
                    f"{_update(self.store, self.features)}"
                )
            sides.append(Ranking(found.rows, sign * found.scores))
        return sides[0], sides[1]

    def _require_searchable(
        self, queries: NDArray[np.float32], k: int, keep: NDArray[np.int64] | None
    ) -> None:
        require_k(k, self.store, keep)
        if not self.store.is_current():
            raise SearchIndexError(
                f"{self.store.location} changed since index {self.path} was opened: samples may "
                f"have been deleted. Bring it up to date: {_update(self.store, self.features)}"
            )
        if queries.ndim != 2 or queries.shape[1] != self.features.dim(self.store):
            raise QueryError(
                f"the queries have shape {queries.shape}, but features of {self.store.location} "
                f"have length {self.features.dim(self.store)}. Make them with indexer.features."
            )
        if not np.isfinite(queries).all():
            raise QueryError("a query's features are not finite: its gradients are damaged")


def index_path(
    store: Store,
    measure: Measure | str,
    *,
    etas: Sequence[float] | None = None,
    matched: bool = False,
) -> Path:
    """Where the index of a store under a measure stands unless told otherwise.

    One of other checkpoint weights than the store's, or of matched slots, has a place of its own.
    """
    name = f"{store.name}.{_indexed(measure).name.replace(':', '-')}"
    if matched:
        name += ".matched"
    if etas is not None and list(etas) != store.etas:
        given = ",".join(f"{eta:g}" for eta in etas)
        name += f".etas-{blake2b(given.encode(), digest_size=4).hexdigest()}"
    name += ".index"
    # FAISS reads files: the index of a store under a URL stands in the current folder.
    return Path(name) if store.objects.remote else store.path.with_name(name)


def estimated_nbytes(
    store: Store,
    measure: Measure | str,
    path: str | Path | None = None,
    *,
    etas: Sequence[float] | None = None,
    matched: bool = False,
    factory: str | None = None,
) -> int:
    """About how many bytes `build_index` with the same arguments takes, in memory and on the disk.

    Raises:
        ConfigError: if FAISS knows no such index.
    """
    if path is None:
        path = index_path(store, measure, etas=etas, matched=matched)
    width = store.dim * (store.slots if matched else 1)
    return estimated_bytes(_factory(factory, Path(path)), width, store.samples)


def build_index(
    store: Store,
    measure: Measure | str,
    path: str | Path | None = None,
    *,
    etas: Sequence[float] | None = None,
    matched: bool = False,
    factory: str | None = None,
    queries: Store | None = None,
) -> SearchIndex:
    """Build the index of a store under a measure, or open the one that stands there already.

    One that was built before samples were added to the store or deleted from it is brought up to
    date: vectors of what is gone are removed, and only what is new is read.

    Args:
        store: a complete store.
        measure: a measure, or its name.
        path: the index's folder; by default `index_path`.
        etas: checkpoint weights η_k; by default the store's.
        matched: match slots timestep by timestep.
        factory: what FAISS keeps of each vector: one of `indexer.factory.NAMES`, or a string of
            FAISS's `index_factory`; by default what the index that stands there has, else one bit
            per dimension.
        queries: a query store to measure the recall with; by default training samples.

    Raises:
        UnsealedError: if the store is not complete.
        SearchIndexError: if another index stands at `path`; it is not changed.
    """
    measure = _indexed(measure)
    if path is None:
        path = index_path(store, measure, etas=etas, matched=matched)
    path = Path(path)
    store.require_complete()
    features = Features.of(store, measure, etas=etas, matched=matched)
    factory = _factory(factory, path)
    wanted = _built_from(store, features, factory)
    if path.exists():
        stage, start, was = _outdated(path, wanted, store, features)
        if stage is None:
            return open_index(path, store, measure, etas=etas, matched=matched, factory=factory)
    else:
        stage, start, was = FirstStage.empty(factory, store, features), 0, None
    measured = None if was is None else was.measured
    recall = Recall(store, features, queries) if measured is None else None
    # Read once for the pass, for what is measured after it, and for the questions to come.
    weights = RowWeights(store, features) if recall is not None else None
    _fill(stage, start, store, features, recall=recall, weights=weights)
    known = None if was is None else was.exact_from
    if recall is not None:
        measured = recall.of(stage)
        engine = ExactEngine(store, features, weights)
        known = exact_from(engine, measured.candidates, recall.vector_seconds)
    # Built beside and renamed: a half-written index never has an index's name.
    building = path.with_name(f".{path.name}.building-{uuid4().hex}")
    old = path.with_name(f".{path.name}.old-{uuid4().hex}")
    try:
        building.mkdir(parents=True)
        stage.write(building / VECTORS_NAME)
        spec = IndexSpec(
            **wanted.model_dump(),
            count=store.samples,
            measured=measured,
            exact_from=known,
            sha256=_sha256(building / VECTORS_NAME),
        )
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
    """Add the samples from `start` on to a first stage, in one pass."""

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


def _factory(given: str | None, path: Path) -> str:
    """What is to be kept of each vector: what is given, what the index there has, or one bit."""
    if given is not None:
        return recorded(given)
    try:
        return IndexSpec.model_validate_json(objects_at(path).read(SPEC_NAME)).factory
    except (OSError, ValueError, StoreError):
        return DEFAULT


def _outdated(
    path: Path, wanted: BuiltFrom, store: Store, features: Features
) -> tuple[FirstStage | None, int, IndexSpec | None]:
    """An index of the store as it was, without the vectors of what is gone, and how many are left.

    Samples keep their order whatever is done to a store, and new ones come last: so the vectors
    that are left are those of the store's first samples.

    Returns:
        The first stage, how many vectors it holds, and its specification, whose measurements stay
        true; None if so much was added since that it must be measured anew. No first stage if the
        index is up to date or of something else, which `open_index` tells.
    """
    try:
        files = objects_at(path)
        found = IndexSpec.model_validate_json(files.read(SPEC_NAME))
        if _differing(found, wanted) != "samples":
            return None, 0, None
        was = Manifest.parse(
            files.read(SAMPLES_NAME), where=str(path / SAMPLES_NAME), samples=found.count
        )
    except (OSError, ValueError, StoreError):
        return None, 0, None
    now = list(zip(store.manifest.ids, store.manifest.digests, strict=True))
    kept, gone = 0, []
    for row, sample in enumerate(zip(was.ids, was.digests, strict=True)):
        if kept < len(now) and now[kept] == sample:
            kept += 1
        else:
            gone.append(row)
    stage = _read(path, found, store, features)
    if gone and not stage.remove(np.array(gone, np.int64)):
        return FirstStage.empty(wanted.factory, store, features), 0, None
    if len(now) > _MEASURED_UP_TO * found.measured.samples:
        return stage, kept, None
    return stage, kept, found


def open_index(
    path: str | Path,
    store: Store,
    measure: Measure | str,
    *,
    etas: Sequence[float] | None = None,
    matched: bool = False,
    factory: str | None = None,
) -> SearchIndex:
    """Open an index that was built from this store, measure and checkpoint weights.

    Args:
        path: the index's folder.
        store: the store that it was built from.
        measure: a measure, or its name.
        etas: checkpoint weights η_k; by default the store's.
        matched: whether slots are matched timestep by timestep.
        factory: what FAISS must keep of each vector; by default, whatever the index has.

    Raises:
        SearchIndexError: if there is none, it is damaged, or it was built from something else.
    """
    path = Path(path)
    measure = _indexed(measure)
    features = Features.of(store, measure, etas=etas, matched=matched)
    mend = f"Remove {path} and build it again: {_update(store, features)}"
    if not path.exists():
        raise SearchIndexError(f"there is no index {path}. Build it: {_update(store, features)}")
    try:
        spec = IndexSpec.model_validate_json(objects_at(path).read(SPEC_NAME))
    except (OSError, ValidationError) as error:
        raise SearchIndexError(
            f"{path} exists and is not a whole index ({SPEC_NAME} is missing or damaged, or of "
            f"another version). {mend}"
        ) from error
    expected = _built_from(store, features, recorded(factory) if factory else spec.factory)
    name = _differing(spec, expected)
    if name == "samples":
        raise SearchIndexError(
            f"index {path} was built from {spec.count:,} samples; {store.location} has "
            f"{store.samples:,} now, and not the same. Bring it up to date: "
            f"{_update(store, features)}"
        )
    if name is not None:
        raise SearchIndexError(
            f"index {path} was built from something else: {name} is {getattr(spec, name)!r}, but "
            f"{store.location} needs {getattr(expected, name)!r}. {mend}"
        )
    return SearchIndex(path, spec, store, features, _read(path, spec, store, features))


def _indexed(measure: Measure | str) -> Measure:
    """The measure of the vectors: a preconditioned one changes the queries alone."""
    given = measure_of(measure)
    return given.indexed if isinstance(given, QuerySide) else given


def _read(path: Path, spec: IndexSpec, store: Store, features: Features) -> FirstStage:
    mend = f"Remove {path} and build it again: {_update(store, features)}"
    file = path / VECTORS_NAME
    try:
        if not file.is_file():  # a pipe would keep FAISS waiting for ever
            raise OSError("it is not a regular file")
        if _sha256(file) != spec.sha256:  # FAISS trusts what it reads
            raise OSError("it is not what was written")
        stage = FirstStage.read(file, features, spec.measured.query_bits)
    except (OSError, RuntimeError) as error:
        raise SearchIndexError(
            f"index {path} is damaged: {VECTORS_NAME} cannot be read: {error}. {mend}"
        ) from error
    if len(stage) != spec.count or stage.dim != spec.dim:
        raise SearchIndexError(
            f"index {path} is damaged: it holds {len(stage)} vectors of length {stage.dim}, "
            f"not {spec.count} of {spec.dim}. {mend}"
        )
    return stage


def _update(store: Store, features: Features) -> str:
    command = f"gradstore index --store {store.location} --measures {features.measure.name}"
    if list(features.etas) != store.etas:
        command += f" --etas {','.join(f'{eta:g}' for eta in features.etas)}"
    return command + (" --matched" if features.slots is not None else "")


def _built_from(store: Store, features: Features, factory: str) -> BuiltFrom:
    content = json.dumps([list(store.manifest.ids), list(store.manifest.digests)])
    return BuiltFrom(
        fingerprint=store.spec.fingerprint,
        measure=features.measure.identity(),
        etas=list(features.etas),
        matched=features.slots is not None,
        factory=factory,
        dim=features.width(store),
        samples=blake2b(content.encode(), digest_size=16).hexdigest(),
    )


def _differing(found: BuiltFrom, wanted: BuiltFrom) -> str | None:
    """The first attribute in which two differ."""
    names = BuiltFrom.model_fields
    return next((name for name in names if getattr(found, name) != getattr(wanted, name)), None)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
