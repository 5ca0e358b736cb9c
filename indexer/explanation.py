"""What a score is made of, and how far the projection may have moved it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gradstore.errors import QueryError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gradstore.reader import Store
    from indexer.feature import Features

_BLOCK_BYTES: Final = 64 * 2**20


@dataclass(frozen=True)
class Explanation:
    """Scores of some samples on each query, taken apart.

    Attributes:
        parts: what each checkpoint adds to the score, float32 `[queries, samples, checkpoints]`.
        standard_error: of the score, from the projection, float32 `[queries, samples]`.
        z: the score over the standard error of two gradients of these lengths that have nothing to
            do with each other, float32 `[queries, samples]`. Among N samples the largest of noise
            alone is about √(2 ln N): 4.1 of 5,000, 5.3 of a million. 0 where a length is 0.
    """

    parts: NDArray[np.float32]
    standard_error: NDArray[np.float32]
    z: NDArray[np.float32]


def explain(
    store: Store,
    features: Features,
    queries: NDArray[np.float32],
    samples: NDArray[np.int64],
) -> Explanation:
    """Take scores apart by checkpoint, and tell their error.

    For random projections P with E⟨Pg, Ph⟩ = ⟨g, h⟩, as `trak` and `sjlt` are, the variance of
    ⟨Pg, Ph⟩ is (|g|²|h|² + ⟨g, h⟩²) / dim for normal entries, and for Rademacher and sparse ones
    less by 2 Σ g²h² / dim, which is next to nothing unless a few parameters hold most of a gradient
    (Achlioptas 2003; Li, Hastie and Church 2006). Checkpoints are projected independently, so their
    variances add. Slots that are matched share a projection: the variance of Σ_t ⟨Pg_t, Ph_t⟩ is
    Σ_tu (⟨g_t, g_u⟩⟨h_t, h_u⟩ + ⟨g_t, h_u⟩⟨g_u, h_t⟩) / dim. Lengths and products are those of the
    projected features, which estimate the true ones within 1/√(2 dim) of the lengths; what float16
    or int8 rounds away is far less.

    Args:
        store: the training store.
        features: how its rows become features.
        queries: features of the queries, float32 `[queries, dim]`; not preconditioned.
        samples: numbers of samples, `[queries, samples]`.

    Returns:
        The explanation. Standard errors are 0, and z infinite, where nothing was projected.
    """
    width, slots = features.width(store), features.slots or 1
    wanted, place = np.unique(samples, return_inverse=True)
    parts = np.zeros((*samples.shape, len(features.etas)), np.float32)
    null, own = np.zeros(samples.shape), np.zeros(samples.shape)
    # Pairs of a query and a sample, by the sample's place in the store, whose rows are read once
    # and no more than a few at a time.
    order = np.argsort(place.ravel(), kind="stable")
    asker, ranked = order // samples.shape[1], place.ravel()[order]
    step = max(1, _BLOCK_BYTES // (4 * width * store.slots))
    for checkpoint in features.checkpoints:
        asked = queries[:, checkpoint * width : (checkpoint + 1) * width]
        asked = asked.reshape(len(queries), slots, -1)
        asked_products = _products(asked, asked)
        here, squares, crossed = (np.zeros(samples.size) for _ in range(3))
        for start in range(0, len(wanted), step):
            rows = store.take(checkpoint, wanted[start : start + step])
            train = features.part(store, checkpoint, rows).reshape(len(rows), slots, -1)
            products = _products(train, train)
            low, high = np.searchsorted(ranked, (start, start + len(train)))
            for first in range(low, high, step):
                some = slice(first, min(first + step, high))
                theirs, own_rows = asker[some], ranked[some] - start
                pairs = _products(asked[theirs], train[own_rows])
                here[order[some]] = np.trace(pairs, axis1=1, axis2=2)
                crossed[order[some]] = np.einsum("ntu,nut->n", pairs, pairs)
                squares[order[some]] = np.einsum(
                    "ntu,ntu->n", asked_products[theirs], products[own_rows]
                )
        parts[:, :, checkpoint] = here.reshape(samples.shape)
        null += squares.reshape(samples.shape)
        own += crossed.reshape(samples.shape)
    if not is_projected(store):
        null, own = np.zeros_like(null), np.zeros_like(own)
    scores, noise = parts.sum(axis=2), np.sqrt(null / store.dim)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(scores == 0, 0, scores / noise)
    error = np.sqrt((null + own) / store.dim)
    return Explanation(parts, error.astype(np.float32), z.astype(np.float32))


def _products(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    """Slots by slots, `[n, slots, dim]` twice to float64 `[n, slots, slots]`."""
    if left.shape[1] == 1:
        one = np.einsum("nd,nd->n", left[:, 0], right[:, 0], dtype=np.float64)
        return np.asarray(one[:, None, None])
    return np.asarray(np.matmul(left, right.transpose(0, 2, 1)), np.float64)


def is_projected(store: Store) -> bool:
    """Whether directions were projected at random, and not kept whole."""
    identity: dict[str, Any] = store.spec.identity
    return bool(identity["projector"]["name"] != "identity")


def breakdown(
    train: Store, queries: Store, features: Features, query: int, sample: int
) -> NDArray[np.float32]:
    """One score by checkpoint, the query's slot and the sample's: what each pair of rows adds.

    Args:
        train: the training store.
        queries: the query store.
        features: how rows become features.
        query: number of the query.
        sample: number of the training sample.

    Returns:
        float32 `[checkpoints, slots of the query, slots of the sample]`, whose sum is the score.
        The slots' timesteps are the stores' columns `timestep`.

    Raises:
        QueryError: if slots are to be matched and are not as many.
    """
    if features.slots is not None and queries.slots != features.slots:
        raise QueryError(
            f"{queries.location} has {queries.slots} timesteps per sample and the training store "
            f"{features.slots}: they cannot be matched. Collect queries at the same timesteps."
        )
    out = np.zeros((len(features.etas), queries.slots, train.slots), np.float32)
    for checkpoint in features.checkpoints:
        sides = []
        for store, number in ((queries, query), (train, sample)):
            rows = store.take(checkpoint, np.array([number]))
            weights = features.weights(store, checkpoint, rows)
            sides.append(rows.direction[0].astype(np.float32) * weights[0, :, None])
        out[checkpoint] = sides[0] @ sides[1].T
        if features.slots is not None:
            out[checkpoint] *= np.eye(features.slots, dtype=np.float32)
    return out


def self_influence(store: Store, features: Features) -> NDArray[np.float32]:
    """Influence of every sample on itself, ⟨feature, feature⟩, float32 `[samples]`; one pass.

    Samples that the model finds hard, and mislabelled or strange ones, score high
    (TracIn, arXiv 2002.08484, section 4.1).
    """
    return np.concatenate(
        [np.einsum("nd,nd->n", block, block) for _, block in features.blocks(store)]
    )
