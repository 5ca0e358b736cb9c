"""Features: the vectors whose inner products are influence."""

from __future__ import annotations

from dataclasses import dataclass
from threading import local
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from gradstore.errors import ConfigError, QueryError
from gradstore.store.format.rows import Rows
from gradstore.workers import in_order
from indexer.product import as_float32

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from gradstore.store.reader import Store
    from indexer.measure import Measure

T = TypeVar("T")

# Of features that are made at once, as float32.
_BLOCK_BYTES: Final = 16 * 2**20
# What a thread reads at once, as stored: it is still in the processor's cache when it is worked on.
_TILE_BYTES: Final = 2**21 + 2**14
# Into how many blocks a small store is divided, and how many samples one of a large store has:
# every block costs some lines of Python, during which no other thread computes.
_BLOCKS: Final = 16
_BLOCK_SAMPLES: Final = 8192

# The part of features that is one checkpoint's, as `scale[:, None] * vectors`: vectors
# [samples, width], float16 where they are just what is stored, else float32; scale float32.
Part = tuple["NDArray[Any]", "NDArray[np.float32]"]
# Neighbours within a block of samples, and the part of their features that is each checkpoint's.
Tile = tuple[slice, dict[int, Part]]


def checked_etas(store: Store, etas: Sequence[float] | None) -> list[float]:
    """`etas`, or the store's; one finite number ≥ 0 per checkpoint, not all 0.

    Raises:
        ConfigError: if they are anything else.
    """
    if etas is None:
        return store.etas
    fine = len(etas) == store.checkpoints and all(np.isfinite(eta) and eta >= 0 for eta in etas)
    if not (fine and any(etas)):
        raise ConfigError(
            f"etas are {list(etas)}; {store.location} has {store.checkpoints} checkpoints and "
            "needs one finite number ≥ 0 for each, and some above 0."
        )
    return list(etas)


@dataclass(frozen=True)
class Features:
    """How rows become features, and the features of any samples of stores of one fingerprint.

    A feature is `√η_k · mean over slots of weight · direction`, concatenated over checkpoints, so
    that the inner product of two is `Σ_k η_k ⟨mean_t row, mean_e row⟩` (DESIGN, "The mathematics").

    Matched timestep by timestep, slots are not averaged but concatenated, too, each weighed by
    `1/√slots`: the inner product is `Σ_k η_k · mean_t ⟨row_t, row_t⟩`, which leaves out how
    gradients at one timestep meet those at another.

    Attributes:
        measure: weighs the rows; fitted to the training store.
        etas: checkpoint weights η_k. A checkpoint of weight 0 is not read.
        slots: rows per sample and checkpoint where they are matched; None where they are averaged.
    """

    measure: Measure
    etas: tuple[float, ...]
    slots: int | None = None

    @classmethod
    def of(
        cls,
        store: Store,
        measure: Measure,
        *,
        etas: Sequence[float] | None = None,
        matched: bool = False,
    ) -> Features:
        """Features of a training store.

        Args:
            store: the training store.
            measure: a measure, which is fitted to it.
            etas: checkpoint weights η_k, 0 to leave one out; by default the store's.
            matched: match slots timestep by timestep.

        Raises:
            ConfigError: if there is not one finite, non-negative eta per checkpoint.
        """
        etas = checked_etas(store, etas)
        return cls(measure.fitted(store), tuple(etas), store.slots if matched else None)

    def dim(self, store: Store) -> int:
        """Length of a feature: checkpoints × dim, times slots where they are matched."""
        return len(self.etas) * self.width(store)

    def dtype(self, store: Store) -> str:
        """What `each` gives the vectors as: as stored in float16, unless slots are averaged."""
        return "float16" if store.dtype == "float16" and store.slots == 1 else "float32"

    def width(self, store: Store) -> int:
        """Length of the part that is one checkpoint's."""
        return store.dim * (self.slots or 1)

    def range(self, store: Store, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Features of samples `start` to `stop` (one past the last), float32 `[samples, dim]`.

        Raises:
            UnsealedError: if a shard that is needed is not sealed.
            QueryError: if slots are to be matched, and the store has another number of them.
        """
        stop = store.samples if stop is None else stop
        out = np.zeros((stop - start, self.dim(store)), np.float32)
        for checkpoint in self.checkpoints:
            self._put(store, checkpoint, store.rows(checkpoint, start, stop), out)
        return out

    def take(
        self, store: Store, samples: NDArray[np.int64], weights: RowWeights | None = None
    ) -> NDArray[np.float32]:
        """Features of some samples, by number, in the order asked for.

        Args:
            store: the store.
            samples: numbers of samples.
            weights: the store's, if they are at hand: then only directions are read.
        """
        out = np.zeros((len(samples), self.dim(store)), np.float32)
        for checkpoint in self.checkpoints:
            if weights is None:
                self._put(store, checkpoint, store.take(checkpoint, samples), out)
            else:
                width = self.width(store)
                out[:, checkpoint * width : (checkpoint + 1) * width] = self._weighed(
                    store.directions(checkpoint, samples), weights.at(checkpoint)[samples]
                )
        return out

    def each(
        self,
        store: Store,
        work: Callable[[NDArray[np.int64], Iterator[Tile]], T],
        *,
        start: int = 0,
        keep: NDArray[np.int64] | None = None,
        weights: RowWeights | None = None,
        most: int | None = None,
    ) -> Iterator[tuple[NDArray[np.int64], T]]:
        """`work` on the features of all samples, a block at a time, several at once.

        Args:
            store: the store.
            work: is given numbers of samples and the tiles of their features, in order. It is
                called in several threads, in each of them in the order of the store, and may keep
                nothing of a tile: its memory is used for the next one.
            start: the first sample.
            keep: numbers of the samples that are wanted, rising; by default all.
            weights: the store's, if they are at hand.
            most: how many samples a block may have, if the work itself takes memory for each.

        Yields:
            Numbers of samples, and what came of the work, in the order of the store.
        """
        if start >= store.samples:
            return iter(())
        first = start if weights is None else 0
        weights = RowWeights(store, self, first) if weights is None else weights
        known = {place: weights.at(place) for place in self.checkpoints}
        step = min(most or store.samples, self._together(store))
        own = local()

        def some(samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], T]:
            if not hasattr(own, "scratch"):
                nbytes = _BLOCK_BYTES if store.objects.remote else _TILE_BYTES
                own.scratch = {place: store.scratch(nbytes) for place in known}
            return samples, work(samples, tiles(samples))

        def tiles(samples: NDArray[np.int64]) -> Iterator[Tile]:
            weighed = {place: weight[samples - first] for place, weight in known.items()}
            read = [store.tiles(place, samples, own.scratch[place]) for place in known]
            low = 0
            for directions in zip(*read, strict=True):
                here = slice(low, low + len(directions[0]))
                low = here.stop
                yield (
                    here,
                    {
                        place: self._scaled(direction, weighed[place][here])
                        for place, direction in zip(known, directions, strict=True)
                    },
                )

        def wanted() -> Iterator[NDArray[np.int64]]:
            for low in range(start, store.samples, step):
                high = min(low + step, store.samples)
                samples = np.arange(low, high)
                if keep is not None:
                    samples = keep[slice(*np.searchsorted(keep, (low, high)))]
                if len(samples):
                    yield samples

        return in_order(some, wanted(), remote=store.objects.remote)

    def _together(self, store: Store) -> int:
        """Samples of a block of `each`: whole shards, where there are enough for every core."""
        shard = store.parts[0].layout.shard_samples
        share = min(_BLOCK_SAMPLES, -(-store.samples // _BLOCKS))
        tile = _TILE_BYTES // (np.dtype(store.dtype).itemsize * store.dim * store.slots)
        return max(share // shard * shard or share, tile)

    def blocks(self, store: Store) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Features of all samples, at most a shard at a time, as (first sample, features)."""
        for start, stop in self.spans(store):
            yield start, self.range(store, start, stop)

    def spans(self, store: Store, step: int | None = None) -> Iterator[tuple[int, int]]:
        """Ranges of samples that cover the store, each within a shard and of bounded bytes."""
        step = step or self._step(store)
        for low, high in store.blocks():
            for start in range(low, high, step):
                yield start, min(start + step, high)

    def _step(self, store: Store) -> int:
        averaged = store.slots if self.slots is None else 1  # which are read, too
        return max(1, _BLOCK_BYTES // (4 * self.dim(store) * averaged))

    @property
    def checkpoints(self) -> list[int]:
        """Places of the checkpoints that weigh something."""
        return [place for place, eta in enumerate(self.etas) if eta > 0]

    def _put(self, store: Store, checkpoint: int, rows: Rows, out: NDArray[np.float32]) -> None:
        width = self.width(store)
        out[:, checkpoint * width : (checkpoint + 1) * width] = self.part(store, checkpoint, rows)

    def part(self, store: Store, checkpoint: int, rows: Rows) -> NDArray[np.float32]:
        """The part of features that is one checkpoint's, float32 `[samples, width]`."""
        return self._weighed(rows.direction, self.weights(store, checkpoint, rows))

    def _scaled(self, direction: NDArray[Any], weights: NDArray[np.float32]) -> Part:
        """`_weighed`, not yet multiplied out where there is but one slot."""
        if direction.shape[1] == 1:
            return direction[:, 0], weights[:, 0]
        return self._weighed(direction, weights), np.ones(len(weights), np.float32)

    def _weighed(
        self, direction: NDArray[Any], weights: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        direction = as_float32(direction)
        if self.slots is not None:
            return (direction * weights[:, :, None]).reshape(len(direction), -1)
        if direction.shape[1] == 1:
            return np.asarray(direction[:, 0] * weights)
        mean: NDArray[np.float32] = np.einsum("ns,nsd->nd", weights, direction, optimize=True)
        return mean

    def weights(self, store: Store, checkpoint: int, rows: Rows) -> NDArray[np.float32]:
        """Weights of rows within features, float32 `[samples, slots]`."""
        if self.slots not in {None, store.slots}:
            raise QueryError(
                f"{store.location} has {store.slots} timesteps per sample and the training store "
                f"{self.slots}: they cannot be matched. Collect queries at the same timesteps."
            )
        weights = self.measure.weights(rows, checkpoint).astype(np.float32)
        shared = store.slots if self.slots is None else np.sqrt(store.slots)
        weights *= np.float32(np.sqrt(self.etas[checkpoint]) / shared)
        return weights

    def require_matching(self, train: Store, queries: Store) -> None:
        """Raise `QueryError` if slots are matched and a query's timesteps are not the samples'."""
        if self.slots is None:
            return
        for checkpoint in self.checkpoints:
            grids = [
                np.unique(store.column("timestep", checkpoint), axis=0)
                for store in (train, queries)
            ]
            if max(map(len, grids)) > 1 or not np.array_equal(grids[0], grids[1]):
                raise QueryError(
                    f"slots of {train.location} and {queries.location} cannot be matched: their "
                    "timesteps differ, or differ from sample to sample. Average them instead."
                )


class RowWeights:
    """Weights of all rows of a store, read when they are first needed: four bytes a row.

    Args:
        store: the store.
        features: how its rows become features.
        start: the first sample whose rows are of interest.
    """

    def __init__(self, store: Store, features: Features, start: int = 0) -> None:
        self._store, self._features, self._start = store, features, start
        self._known: dict[int, NDArray[np.float32]] = {}

    def at(self, checkpoint: int) -> NDArray[np.float32]:
        """Weights of the rows at a checkpoint from the first sample on, `[samples, slots]`."""
        if checkpoint not in self._known:
            store = self._store
            some = np.arange(self._start, store.samples) if self._start else None
            found = store.columns(("norm", "loss", "timestep"), checkpoint, some)
            rows = Rows(np.empty((*found["norm"].shape, 0), np.float16), **found)
            self._known[checkpoint] = self._features.weights(store, checkpoint, rows)
        return self._known[checkpoint]


def features(
    store: Store,
    measure: Measure,
    start: int = 0,
    stop: int | None = None,
    *,
    etas: Sequence[float] | None = None,
) -> NDArray[np.float32]:
    """Features of samples `start` to `stop` (one past the last), slots averaged.

    Args:
        store: training or query rows.
        measure: weighs the rows; fitted, if it must be, to the training store.
        start: first sample.
        stop: one past the last sample.
        etas: checkpoint weights η_k; by default the store's.

    Returns:
        float32 `[samples, checkpoints × dim]`.

    Raises:
        UnsealedError: if a shard that is needed is not sealed.
        ConfigError: if there is not one finite, non-negative eta per checkpoint.
    """
    return Features(measure, tuple(checked_etas(store, etas))).range(store, start, stop)


def feature_dim(store: Store) -> int:
    """Length of a feature whose slots are averaged: checkpoints × dim."""
    return store.checkpoints * store.dim
