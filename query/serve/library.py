"""What a server holds in memory: stores, engines, fitted measures and images."""

from __future__ import annotations

from collections import Counter, OrderedDict
from functools import cached_property, partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import numpy as np

from gradstore.errors import DatasetError, QueryError
from gradstore.store.format.columns import counted
from indexer import ExactEngine, measure_of
from indexer.measures.registry import indexed
from query.engines import engine_of, exact_engine, fitted
from query.results.alike import mark
from query.results.pictures import image_of, thumbnail

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from numpy.typing import NDArray
    from PIL import Image

    from gradstore.store.reader import Store
    from indexer import Measure, SearchIndex
    from query.results.pictures import Pictures

T = TypeVar("T")

_MOST_ENGINES: Final = 24
_MOST_MEASURES: Final = 8
_THUMBNAIL_BYTES: Final = 64 * 2**20
_MOST_MARKS: Final = 16_384


class Kept(Generic[T]):
    """The most recent values by key. Each is made once, even if several threads ask at once.

    Args:
        most: total size of the values kept.
        size: size of a value; by default 1.
    """

    def __init__(self, most: int, size: Callable[[T], int] = lambda _: 1) -> None:
        self._most, self._size, self._total = most, size, 0
        self._lock = Lock()
        self._locks: dict[Hashable, Lock] = {}
        self._values: OrderedDict[Hashable, T] = OrderedDict()

    @property
    def total(self) -> int:
        """Size of the values kept."""
        return self._total

    def get(self, key: Hashable) -> T | None:
        """The value, if it is kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Hashable, value: T) -> None:
        """Keep a value; the one that was used least recently goes."""
        with self._lock:
            if key in self._values:
                self._total -= self._size(self._values.pop(key))
            self._values[key] = value
            self._total += self._size(value)
            while self._total > self._most and len(self._values) > 1:
                self._total -= self._size(self._values.popitem(last=False)[1])

    def of(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value, made now if it is not kept."""
        with self._lock:
            own = self._locks.setdefault(key, Lock())
        try:
            with own:
                found = self.get(key)
                if found is None:
                    found = make()
                    self.put(key, found)
                return found
        finally:
            with self._lock:
                self._locks.pop(key, None)


class _Guarded:
    """Samples that one thread at a time reads: datasets need not stand several."""

    def __init__(self, samples: Pictures) -> None:
        self._samples, self._lock = samples, Lock()

    def __getitem__(self, row: int) -> Any:
        """See `Pictures`."""
        with self._lock:
            return self._samples[row]

    def image(self, row: int) -> Image.Image | None:
        """See `Pictures`."""
        with self._lock:
            return self._samples.image(row)


class Library:
    """The stores that a server answers from, and what it keeps of them.

    Args:
        store: the training store.
        queries: a query store, or None.
        train: the training samples, in store order; None to show none.
        asked: the samples of the query store; None to show none.

    Attributes:
        store: the training store.
        queries: the query store.
        shown: images by store, `sample` or `query`.
    """

    def __init__(
        self,
        store: Store,
        queries: Store | None,
        train: Pictures | None,
        asked: Pictures | None,
    ) -> None:
        store.require_complete()
        self.store, self.queries = store, queries
        self.shown: dict[str, tuple[Store | None, Pictures | None]] = {
            "sample": (store, None if train is None else _Guarded(train)),
            "query": (queries, None if asked is None else _Guarded(asked)),
        }
        self._engines: Kept[SearchIndex | ExactEngine] = Kept(_MOST_ENGINES)
        self._measures: Kept[Measure] = Kept(_MOST_MEASURES)
        self._thumbnails = Kept[bytes](_THUMBNAIL_BYTES, len)
        self._marks: Kept[NDArray[np.float32]] = Kept(_MOST_MARKS)

    def engine(self, measure: str, etas: tuple[float, ...]) -> SearchIndex | ExactEngine:
        """The index of a measure, if there is one, else its exact engine."""
        served = indexed(measure)
        return self._engines.of(
            (served.name, etas), lambda: engine_of(self.store, served, self._given(etas))
        )

    def exact(self, measure: str, etas: tuple[float, ...]) -> ExactEngine:
        """The exact engine of a measure, for studies."""
        engine = self.engine(measure, etas)
        if isinstance(engine, ExactEngine):
            return engine
        served = indexed(measure)
        found = self._engines.of(
            (served.name, etas, "exact"),
            lambda: exact_engine(self.store, served, self._given(etas)),
        )
        if not isinstance(found, ExactEngine):
            raise TypeError(f"{found!r} was kept for an exact engine")
        return found

    def measure(self, name: str) -> Measure:
        """A measure, fitted to the store."""
        return self._measures.of(name, lambda: fitted(measure_of(name), self.store))

    def _given(self, etas: tuple[float, ...]) -> Sequence[float] | None:
        return None if list(etas) == self.store.etas else etas

    def row(self, kind: str, name: str) -> int:
        """Number of a sample.

        Args:
            kind: `sample` or `query`.
            name: its id.

        Raises:
            QueryError: if there is none.
        """
        store = self.shown[kind][0]
        found = None if store is None else store.manifest.row(name)
        if found is None:
            raise QueryError(f"there is no {kind} {name!r}.")
        return found

    def image(self, kind: str, name: str) -> Image.Image | None:
        """The image of a sample; None if it cannot be shown.

        Raises:
            QueryError: if there is no such sample.
            DatasetError: if it is not what the store was made from.
        """
        row = self.row(kind, name)
        store, samples = self.shown[kind]
        if samples is None or store is None:
            return None
        return image_of(samples, store, row)

    def thumbnail(self, kind: str, name: str, side: int) -> bytes | None:
        """The image of a sample as WebP, at most `side` pixels a side; see `image`."""
        kept = self._thumbnails.get((kind, name, side))
        if kept is None:
            image = self.image(kind, name)
            if image is None:
                return None
            kept = thumbnail(image, side)
            self._thumbnails.put((kind, name, side), kept)
        return kept

    def marks(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """What near copies among training samples share: see `query.results.alike.mark`."""
        return np.stack([self._marks.of(row, partial(self._mark, row)) for row in rows])

    def _mark(self, row: int) -> NDArray[np.float32]:
        try:
            return mark(self.image("sample", self.store.manifest.ids[row]))
        except DatasetError:  # it cannot be shown, so it is no copy
            return mark(None)

    @cached_property
    def copies(self) -> Counter[str]:
        """Number of training samples by digest."""
        return counted(self.store.manifest.digests)

    @cached_property
    def values(self) -> dict[str, list[tuple[Any, int]]]:
        """The most frequent values of each column of the training samples, with their numbers."""
        return {
            name: counted(column, str).most_common(100)
            for name, column in self.store.manifest.metadata.items()
        }
