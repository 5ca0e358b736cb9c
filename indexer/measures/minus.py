"""Influence without the directions that all training samples share: a query-side measure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Final, Self

import numpy as np

from gradstore.errors import ConfigError
from indexer.measures.simple import TracIn
from indexer.measures.trak import grams

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from gradstore.store.format.rows import Rows
    from gradstore.store.format.spec import Identity
    from gradstore.store.reader import Store
    from indexer.measure import Measure

# Iteration stops when the residual is this small, relative to the largest eigenvalue.
_RESIDUAL: Final = 1e-7
_MOST_ITERATIONS: Final = 1000
# Further vectors that are iterated: they decide how fast the wanted ones converge.
_MORE: Final = 8


@dataclass(frozen=True)
class Minus:
    """`⟨φ(z'), P φ(z)⟩` per checkpoint k, times η_k, summed over checkpoints.

    φ is the mean over slots of norm · direction, as in TracIn. P removes the first `rank`
    eigenvectors of ΦᵀΦ, where Φ are the features of all training samples at that checkpoint: the
    directions that hold most of their squared length, and that influence every query alike.

    Attributes:
        rank: number of directions to remove, at least 1.

    Examples:
        >>> import gradstore as gs
        >>> gs.search("train.gradstore", "asked.gradstore", 3, measure="minus:2")
        Answer('minus:2', queries=3, k=3, store='train.gradstore')
    """

    rank: int
    _removed: tuple[NDArray[np.float64], ...] | None = field(
        default=None, repr=False, compare=False
    )

    indexed: ClassVar[Measure] = TracIn()

    def __post_init__(self) -> None:
        if not self.rank >= 1 or not float(self.rank).is_integer():
            raise ConfigError(f"minus: rank is {self.rank:g}; it must be a whole number above 0")

    @property
    def name(self) -> str:
        """`minus:rank`."""
        return f"minus:{self.rank:g}"

    @property
    def is_fitted(self) -> bool:
        """Whether the directions are known."""
        return self._removed is not None

    def identity(self) -> Identity:
        """Name and rank."""
        return {"name": "minus", "rank": int(self.rank)}

    def weights(self, rows: Rows, checkpoint: int) -> NDArray[np.float32]:
        """Return the norms."""
        return self.indexed.weights(rows, checkpoint)

    def fitted(self, store: Store) -> Self:
        """Fit to ΦᵀΦ of a store in one pass over it; return itself if already fitted."""
        return self if self.is_fitted else self.of(grams(store), store.samples)

    def of(self, grams: Iterable[NDArray[np.float64]], samples: int) -> Self:  # noqa: ARG002
        """Fit to ΦᵀΦ of each checkpoint, given in order."""
        return replace(self, _removed=tuple(leading(gram, int(self.rank)) for gram in grams))

    def prepared(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Remove the directions from queries, in float64."""
        if self._removed is None:
            raise ConfigError("minus is not fitted to a store: use minus.fitted(store)")
        parts = np.split(queries.astype(np.float64), len(self._removed), axis=1)
        left = [
            part - (part @ vectors) @ vectors.T
            for part, vectors in zip(parts, self._removed, strict=True)
        ]
        return np.concatenate(left, axis=1).astype(np.float32)


def leading(matrix: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
    """The first eigenvectors of a symmetric positive matrix, `[dim, rank]`, by block iteration.

    Raises:
        ConfigError: if the matrix is no larger than `rank`.
    """
    dim = len(matrix)
    if rank >= dim:
        raise ConfigError(f"minus:{rank} would remove all {dim} dimensions; remove fewer.")
    found = np.random.default_rng(0).standard_normal((dim, min(dim, rank + _MORE)))
    vectors, _ = np.linalg.qr(found)
    for _ in range(_MOST_ITERATIONS):
        product = matrix @ vectors
        values, rotation = np.linalg.eigh(vectors.T @ product)
        order = np.argsort(values)[::-1]
        values, rotation = values[order], rotation[:, order]
        residual = (product @ rotation - (vectors @ rotation) * values)[:, :rank]
        wanted: NDArray[np.float64] = (vectors @ rotation)[:, :rank]
        if np.linalg.norm(residual, axis=0).max() <= _RESIDUAL * values[0]:
            break
        vectors, _ = np.linalg.qr(product)
    return wanted
