"""Features: vectors whose inner products are influence."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from threading import local
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

import indexer
from gradstore.errors import ConfigError, QueryError
from gradstore.store.format.rows import Rows
from gradstore.store.opening import as_store
from gradstore.workers import in_order
from indexer.measure import SampleSide
from indexer.product import as_float32

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from gradstore.store.opening import StoreLike
    from gradstore.store.reader import Store
    from indexer.measure import Measure

T = TypeVar("T")

# Float32 bytes of features computed at once.
_BLOCK_BYTES: Final = 16 * 2**20
# Stored bytes that one thread reads at once: few enough to stay in the processor's cache.
_TILE_BYTES: Final = 2**21 + 2**14
# Number of blocks of a small store, and samples per block of a large store. Each block runs a few
# lines of Python, during which the GIL blocks all other threads.
_BLOCKS: Final = 16
_BLOCK_SAMPLES: Final = 8192

# One checkpoint's part of features, as `scale[:, None] * vectors`. vectors: [samples, width],
# float16 if they equal the stored values, else float32. scale: float32.
CheckpointPart = tuple["NDArray[Any]", "NDArray[np.float32]"]
# Adjacent samples within a block, and each checkpoint's part of their features.
Tile = tuple[slice, dict[int, CheckpointPart]]


def checked_etas(store: Store, etas: Sequence[float] | None) -> list[float]:
    """Return `etas` or, by default, the store's: one finite number ≥ 0 per checkpoint, not all 0.

    Raises:
        ConfigError: if `etas` breaks this rule.
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
    """Computes features from rows, for all stores that share one fingerprint.

    A feature is `√η_k · mean over slots of weight · direction`, concatenated over checkpoints. The
    inner product of two is `Σ_k η_k ⟨mean_t row, mean_e row⟩`.

    If slots are matched by timestep, they are concatenated instead of averaged, each scaled by
    `1/√slots`. The inner product is then `Σ_k η_k · mean_t ⟨row_t, row_t⟩`: it omits products of
    gradients at different timesteps.

    A measure of whole samples (`SampleSide`) transforms the means.

    Attributes:
        measure: weights the rows; fitted to the training store.
        etas: checkpoint weights η_k. A checkpoint of weight 0 is not read.
        slots: rows per sample and checkpoint if slots are matched; None if they are averaged.

    Examples:
        >>> import gradstore as gs
        >>> store, asked = gs.open_store("train.gradstore"), gs.open_store("asked.gradstore")
        >>> features = gs.Features.of(store, "retrac")
        >>> influence = features.range(asked) @ features.range(store).T
        >>> influence.shape
        (3, 7)
    """

    measure: Measure
    etas: tuple[float, ...]
    slots: int | None = None

    @classmethod
    def of(
        cls,
        store: StoreLike,
        measure: Measure | str,
        *,
        etas: Sequence[float] | None = None,
        matched: bool = False,
    ) -> Features:
        """Features of a training store.

        Args:
            store: the training store, or its path or URL.
            measure: a measure or its name; it is fitted to the store.
            etas: checkpoint weights η_k, 0 to omit a checkpoint; by default the store's.
            matched: match slots by timestep.

        Raises:
            ConfigError: if `etas` is not one finite, non-negative number per checkpoint, or slots
                are matched and the measure transforms their mean.
        """
        store = as_store(store)
        if isinstance(measure, str):
            measure = indexer.measure_of(measure)
        if matched and isinstance(measure, SampleSide):
            raise ConfigError(
                f"{measure.name} transforms the mean of a sample's slots, but matched slots have "
                "no mean. Omit --matched, or use a measure of rows such as tracin."
            )
        etas = checked_etas(store, etas)
        return cls(measure.fitted(store), tuple(etas), store.slots if matched else None)

    def dim(self, store: Store) -> int:
        """Length of a feature: checkpoints × dim, times slots if slots are matched."""
        return len(self.etas) * self.width(store)

    def dtype(self, store: Store) -> str:
        """Dtype of the vectors in `each`: float16 if stored so and not averaged or transformed."""
        stored = store.slots == 1 and self._moving is None
        return "float16" if store.dtype == "float16" and stored else "float32"

    def width(self, store: Store) -> int:
        """Length of one checkpoint's part of a feature."""
        return store.dim * (self.slots or 1)

    def range(self, store: Store, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Features of samples `start` to `stop` (exclusive), float32 `[samples, dim]`.

        Raises:
            UnsealedError: if a required shard is not sealed.
            QueryError: if slots are matched and the store has a different number of slots.
        """
        stop = store.samples if stop is None else stop
        out = np.zeros((stop - start, self.dim(store)), np.float32)
        for checkpoint in self.checkpoints:
            self._put(store, checkpoint, store.rows(checkpoint, start, stop), out)
        return out

    def take(
        self, store: Store, samples: NDArray[np.int64], weights: RowWeights | None = None
    ) -> NDArray[np.float32]:
        """Features of the given samples, in the given order.

        Args:
            store: the store.
            samples: sample numbers.
            weights: the store's row weights, if already read; then only directions are read.
        """
        out = np.zeros((len(samples), self.dim(store)), np.float32)
        for checkpoint in self.checkpoints:
            if weights is None:
                self._put(store, checkpoint, store.take(checkpoint, samples), out)
            else:
                width = self.width(store)
                out[:, checkpoint * width : (checkpoint + 1) * width] = self._part(
                    store.directions(checkpoint, samples),
                    weights.at(checkpoint)[samples],
                    checkpoint,
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
        """Apply `work` to the features of all samples, in blocks, with several threads.

        Args:
            store: the store.
            work: receives sample numbers and the tiles of their features, in order. Several threads
                call it, each in store order. It must not keep references to a tile, whose memory
                is reused for the next tile.
            start: first sample.
            keep: ascending numbers of the samples to process; by default all.
            weights: the store's row weights, if already read.
            most: maximum samples per block, for work that allocates memory per sample.

        Yields:
            Sample numbers and the result of `work`, in store order.
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
                        place: self._scaled(direction, weighed[place][here], place)
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
        """Samples per block of `each`: whole shards if there are enough for all cores."""
        shard = store.parts[0].layout.shard_samples
        share = min(_BLOCK_SAMPLES, -(-store.samples // _BLOCKS))
        tile = _TILE_BYTES // (np.dtype(store.dtype).itemsize * store.dim * store.slots)
        return max(share // shard * shard or share, tile)

    def blocks(self, store: Store) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield features of all samples, at most one shard at a time: (first sample, features)."""
        for start, stop in self.spans(store):
            yield start, self.range(store, start, stop)

    def spans(self, store: Store, step: int | None = None) -> Iterator[tuple[int, int]]:
        """Yield sample ranges that cover the store, each within a shard and of bounded bytes."""
        step = step or self._step(store)
        for low, high in store.blocks():
            for start in range(low, high, step):
                yield start, min(start + step, high)

    def _step(self, store: Store) -> int:
        averaged = store.slots if self.slots is None else 1  # all slots are read before averaging
        return max(1, _BLOCK_BYTES // (4 * self.dim(store) * averaged))

    @property
    def checkpoints(self) -> list[int]:
        """Positions of the checkpoints with nonzero weight."""
        return [place for place, eta in enumerate(self.etas) if eta > 0]

    def _put(self, store: Store, checkpoint: int, rows: Rows, out: NDArray[np.float32]) -> None:
        width = self.width(store)
        out[:, checkpoint * width : (checkpoint + 1) * width] = self.part(store, checkpoint, rows)

    def part(self, store: Store, checkpoint: int, rows: Rows) -> NDArray[np.float32]:
        """One checkpoint's part of features, float32 `[samples, width]`."""
        return self._part(rows.direction, self.weights(store, checkpoint, rows), checkpoint)

    @cached_property
    def _moving(self) -> SampleSide | None:
        """The measure, if it transforms means. To ask takes 16 µs, too long for every tile."""
        return self.measure if isinstance(self.measure, SampleSide) else None

    def _scaled(
        self, direction: NDArray[Any], weights: NDArray[np.float32], checkpoint: int
    ) -> CheckpointPart:
        """Like `_part`, but the multiplication is deferred if there is nothing else to do."""
        if direction.shape[1] == 1 and self._moving is None:
            return direction[:, 0], weights[:, 0]
        return self._part(direction, weights, checkpoint), np.ones(len(weights), np.float32)

    def _part(
        self, direction: NDArray[Any], weights: NDArray[np.float32], checkpoint: int
    ) -> NDArray[np.float32]:
        part = self._weighed(direction, weights)
        if self._moving is None:
            return part
        root = np.float32(np.sqrt(self.etas[checkpoint]))
        units, _ = self._moving.moved(part / root, checkpoint)
        return units * root

    def varied(
        self,
        rows: Rows,
        weights: NDArray[np.float32],
        deviations: NDArray[np.float32],
        checkpoint: int,
    ) -> NDArray[np.float32]:
        """Deviations of a part of features, from those of the weighted mean over slots.

        They differ for a measure that transforms the mean: to first order, a unit vector u of
        length l moves by (d − u ⟨u, d⟩) / l.

        Args:
            rows: rows of some samples.
            weights: their weights in features, float32 `[samples, slots]`.
            deviations: float32 `[samples, deviations, width]`; it may be overwritten.
            checkpoint: position of the checkpoint.
        """
        if self._moving is None:
            return deviations
        root = np.float32(np.sqrt(self.etas[checkpoint]))
        part = self._weighed(rows.direction, weights) / root
        units, lengths = self._moving.moved(part, checkpoint)
        along = np.matmul(deviations, units[:, :, None])
        deviations -= along * units[:, None, :]
        safe = np.where(lengths > 0, lengths, np.inf).astype(np.float32)
        return deviations / safe[:, None, None]

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
        """Weights of rows in features, float32 `[samples, slots]`."""
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
        """Raise `QueryError` if slots are matched and timesteps differ (by store or sample)."""
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
                    "timesteps differ, between stores or samples. Omit --matched to average them."
                )


class RowWeights:
    """Weights of all rows of a store, read on first use; four bytes per row.

    Args:
        store: the store.
        features: computes features from its rows.
        start: first sample whose row weights are read.
    """

    def __init__(self, store: Store, features: Features, start: int = 0) -> None:
        self._store, self._features, self._start = store, features, start
        self._known: dict[int, NDArray[np.float32]] = {}

    def at(self, checkpoint: int) -> NDArray[np.float32]:
        """Row weights at a checkpoint, from sample `start` on, `[samples, slots]`."""
        if checkpoint not in self._known:
            store = self._store
            some = np.arange(self._start, store.samples) if self._start else None
            found = store.columns(("norm", "loss", "timestep"), checkpoint, some)
            rows = Rows(np.empty((*found["norm"].shape, 0), np.float16), **found)
            self._known[checkpoint] = self._features.weights(store, checkpoint, rows)
        return self._known[checkpoint]
