"""Scores by checkpoint, and their standard errors."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

import numpy as np

from gradstore.collect.recorded import Recorded
from gradstore.tabular import Tabular
from indexer.deviations import deviations, margin

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from gradstore.store.reader import Store
    from indexer.feature import Features


_BLOCK_BYTES: Final = 64 * 2**20
# Bytes of copies of rows for pairs: few enough to stay in the processor's cache.
_PAIR_BYTES: Final = 2 * 2**20


@dataclass(frozen=True, repr=False)
class Explanation(Tabular):
    """Scores of samples on each query, split by checkpoint.

    Attributes:
        parts: each checkpoint's part of the score, float32 `[queries, samples, checkpoints]`.
        projection_error: standard error of the score from the projection, float32
            `[queries, samples]`.
        query_error: standard error from the query's timesteps and noises: how much the score moves
            when the query is asked with other noises. float32 `[queries, samples]`, NaN if unknown.
        training_error: the same for the training sample's timesteps and noises.
        z: the score divided by the projection's standard error for two unrelated gradients of the
            same norms, float32 `[queries, samples]`; 0 if a norm is 0. Among N samples, the
            maximum of noise alone is about √(2 ln N): 4.1 for 5,000, 5.3 for a million. It says
            nothing of influence: gradients share a large common part, and z is far above that for
            samples that have nothing to do with each other.
        swings: parts of the query's noise: how far each moves the score, float32
            `[queries, samples, checkpoints, parts]`. Their root sum of squares is `query_error`.
            Samples swing together, so a difference of two scores is surer than either.
    """

    parts: NDArray[np.float32]
    projection_error: NDArray[np.float32]
    query_error: NDArray[np.float32]
    training_error: NDArray[np.float32]
    z: NDArray[np.float32]
    swings: NDArray[np.float32]

    @property
    def query_margin(self) -> NDArray[np.float32]:
        """Half the width of the 95% interval of scores under other noises of the query.

        float32 `[queries, samples]`; NaN where `query_error` is.
        """
        variances = (self.swings.astype(np.float64) ** 2).sum(axis=3)
        found = margin(variances, self.swings.shape[3])
        return np.where(np.isnan(self.query_error), np.nan, found).astype(np.float32)

    @property
    def margin(self) -> NDArray[np.float32]:
        """Half the width of the 95% interval by all errors that are known.

        These are `query_error`, `projection_error` and `training_error`, taken as independent.
        float32 `[queries, samples]`; 0 if none is known.
        """
        variances = (self.swings.astype(np.float64) ** 2).sum(axis=3)
        known = np.nan_to_num(self.projection_error.astype(np.float64)) ** 2
        known += np.nan_to_num(self.training_error.astype(np.float64)) ** 2
        return margin(variances, self.swings.shape[3], known).astype(np.float32)

    def only(self, queries: slice, places: NDArray[np.int64]) -> Explanation:
        """Of some queries, the scores at some places of their lists."""
        values = (getattr(self, one.name) for one in fields(self))
        return Explanation(*(value[queries][:, places] for value in values))

    def __len__(self) -> int:
        return len(self.parts)

    def __repr__(self) -> str:
        queries, samples, checkpoints = self.parts.shape
        return f"Explanation(queries={queries}, samples={samples}, checkpoints={checkpoints})"

    def to_table(self) -> pa.Table:
        """One row per query and position among its samples."""
        import pyarrow as pa

        queries, samples, _ = self.parts.shape
        return pa.table(
            {
                "query": np.repeat(np.arange(queries), samples),
                "place": np.tile(np.arange(samples), queries),
                "score": self.parts.sum(axis=2).ravel(),
                "projection_error": self.projection_error.ravel(),
                "query_error": self.query_error.ravel(),
                "query_margin": self.query_margin.ravel(),
                "training_error": self.training_error.ravel(),
                "margin": self.margin.ravel(),
                "z": self.z.ravel(),
                "parts": self.parts.reshape(queries * samples, -1).tolist(),
            }
        )


def explain(
    store: Store,
    features: Features,
    queries: NDArray[np.float32],
    samples: NDArray[np.int64],
    noise: NDArray[np.float32] | None = None,
) -> Explanation:
    """Split scores by checkpoint and compute their standard errors.

    For random projections P with E⟨Pg, Ph⟩ = ⟨g, h⟩, such as `trak` and `sjlt`, the variance of
    ⟨Pg, Ph⟩ is (|g|²|h|² + ⟨g, h⟩²) / dim for normal entries. For Rademacher and sparse entries it
    is smaller by 2 Σ g²h² / dim, which is negligible unless a few parameters hold most of a
    gradient (Achlioptas 2003; Li, Hastie and Church 2006). Checkpoints are projected independently,
    so their variances add. Matched slots share a projection: the variance of Σ_t ⟨Pg_t, Ph_t⟩ is
    Σ_tu (⟨g_t, g_u⟩⟨h_t, h_u⟩ + ⟨g_t, h_u⟩⟨g_u, h_t⟩) / dim. Norms and products are computed from
    projected features, which estimate the true ones within 1/√(2 dim) of the norms. Rounding to
    float16 or int8 adds much less.

    Args:
        store: the training store.
        features: computes features from its rows.
        queries: features of the queries, float32 `[queries, dim]`; for the projection's error not
            preconditioned.
        samples: sample numbers, `[queries, samples]`.
        noise: the queries' deviations, float32 `[queries, parts, dim]`; see `indexer.deviations`.

    Returns:
        The explanation. Without projection, standard errors are 0 and z is infinite.

    Examples:
        >>> import gradstore as gs
        >>> import numpy as np
        >>> store = gs.open_store("train.gradstore")
        >>> features = gs.Features.of(store, "retrac")
        >>> queries = features.range(gs.open_store("asked.gradstore"))
        >>> gs.explain(store, features, queries, np.array([[0, 1], [2, 3], [4, 5]]))
        Explanation(queries=3, samples=2, checkpoints=2)
    """
    width, slots = features.width(store), features.slots or 1
    wanted, place = np.unique(samples, return_inverse=True)
    parts = np.zeros((*samples.shape, len(features.etas)), np.float32)
    null, own = np.zeros(samples.shape), np.zeros(samples.shape)
    swings, varied = [], np.zeros(samples.size)
    # Process pairs of query and sample in store order, so that each row is read once and only a few
    # rows are in memory.
    order = np.argsort(place.ravel(), kind="stable")
    asker, ranked = order // samples.shape[1], place.ravel()[order]
    each = max(store.slots, 1 if noise is None else noise.shape[1])
    step, together = (
        max(1, nbytes // (4 * width * each)) for nbytes in (_BLOCK_BYTES, _PAIR_BYTES)
    )
    for checkpoint in features.checkpoints:
        own_part = slice(checkpoint * width, (checkpoint + 1) * width)
        asked = queries[:, own_part]
        asked = asked.reshape(len(queries), slots, -1)
        asked_products = slot_products(asked, asked)
        here, squares, crossed = (np.zeros(samples.size) for _ in range(3))
        moved = None if noise is None else noise[:, :, own_part]
        swung = np.zeros((samples.size, 0 if moved is None else moved.shape[1]), np.float32)
        for start in range(0, len(wanted), step):
            rows = store.take(checkpoint, wanted[start : start + step])
            train = features.part(store, checkpoint, rows).reshape(len(rows), slots, -1)
            train_products = slot_products(train, train)
            theirs_vary = deviations(features, store, checkpoint, rows)
            low, high = np.searchsorted(ranked, (start, start + len(train)))
            for first in range(low, high, together):
                some = slice(first, min(first + together, high))
                theirs, own_rows = asker[some], ranked[some] - start
                pairs = slot_products(asked[theirs], train[own_rows])
                here[order[some]] = np.trace(pairs, axis1=1, axis2=2)
                crossed[order[some]] = np.einsum("ntu,nut->n", pairs, pairs)
                squares[order[some]] = np.einsum(
                    "ntu,ntu->n", asked_products[theirs], train_products[own_rows]
                )
                if moved is not None:
                    swung[order[some]] = np.matmul(moved[theirs], train[own_rows, 0, :, None])[
                        :, :, 0
                    ]
                if theirs_vary is not None:
                    parted = np.matmul(theirs_vary[own_rows], asked[theirs, 0, :, None])
                    varied[order[some]] += (parted.astype(np.float64) ** 2).sum(axis=(1, 2))
        parts[:, :, checkpoint] = here.reshape(samples.shape)
        swings.append(swung.reshape(*samples.shape, swung.shape[1]))
        null += squares.reshape(samples.shape)
        own += crossed.reshape(samples.shape)
    if not is_projected(store):
        null, own = np.zeros_like(null), np.zeros_like(own)
    scores, unrelated = parts.sum(axis=2), np.sqrt(null / store.dim)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(scores == 0, 0, scores / unrelated)
    error = np.sqrt((null + own) / store.dim)
    if store.slots < 3 or slots > 1:
        varied[:] = np.nan
    moves = np.stack(swings, axis=2)
    query_error = np.sqrt((moves.astype(np.float64) ** 2).sum(axis=(2, 3)))
    if noise is None:
        query_error[:] = np.nan
    return Explanation(
        parts=parts,
        projection_error=error.astype(np.float32),
        query_error=query_error.astype(np.float32),
        training_error=np.sqrt(varied).reshape(samples.shape).astype(np.float32),
        z=z.astype(np.float32),
        swings=moves,
    )


def slot_products(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    """Products of all pairs of slots, `[n, slots, dim]` twice to float64 `[n, slots, slots]`."""
    if left.shape[1] == 1:
        one = np.einsum("nd,nd->n", left[:, 0], right[:, 0], dtype=np.float64)
        return np.asarray(one[:, None, None])
    return np.asarray(np.matmul(left, right.transpose(0, 2, 1)), np.float64)


def is_projected(store: Store) -> bool:
    """Whether directions were projected at random rather than stored in full."""
    return Recorded.of(store).projected
