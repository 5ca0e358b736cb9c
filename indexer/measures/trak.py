"""TRAK's kernel on stored rows: a measure that preconditions queries and searches TracIn's index.

Any linear transform of the query works with an existing index. TRAK's scores (arXiv 2303.14186)
are `φ(z')ᵀ (ΦᵀΦ + λI)⁻¹ φ(z)` per checkpoint, where Φ are the features of all training samples at
that checkpoint. The inverse is applied to the query.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Final, Self

import numpy as np

from gradstore.errors import ConfigError
from gradstore.progress import progress
from indexer.feature import Features
from indexer.measures.cholesky import Cholesky
from indexer.measures.simple import TracIn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from gradstore.store.format.rows import Rows
    from gradstore.store.format.spec import Identity
    from gradstore.store.reader import Store
    from indexer.measure import Measure


# Maximum bytes of factors held in memory; the rest are in temporary files.
_HELD: Final = 2**31
# Samples summed at once, and matrix columns processed at once. In high dimensions, traversing the
# matrix takes longer than multiplying a few samples.
_SAMPLES: Final = 1024
_COLUMNS: Final = 1024


@dataclass(frozen=True)
class Trak:
    """`φ(z')ᵀ (ΦᵀΦ + λI)⁻¹ φ(z)` per checkpoint k, times η_k, summed over checkpoints.

    φ is the mean over slots of norm · direction, as in TracIn. With rows of the loss, this is TRAK
    without its weighting by the loss's derivative. With rows of ‖ε_θ‖² (`loss: square`), it is
    D-TRAK (arXiv 2311.00500).

    λ is chosen without any test score: `share` times the mean of the eigenvalues of ΦᵀΦ that can be
    other than zero, its trace divided by the smaller of dim and the number of samples. With fewer
    samples than dim, that is the mean squared length of a sample's features. It therefore scales
    with the gradients, and the matrix's condition number is at most dim / share + 1.

    Attributes:
        share: λ as a multiple of that mean eigenvalue.
        lambdas: λ at each checkpoint; None before fitting.

    Examples:
        >>> import gradstore as gs
        >>> gs.search("train.gradstore", "asked.gradstore", 3, measure=gs.Trak(share=10))
        Answer('trak:10', queries=3, k=3, store='train.gradstore')
    """

    share: float = 1.0
    lambdas: tuple[float, ...] | None = None
    _factors: tuple[Cholesky | None, ...] = field(default=(), repr=False, compare=False)

    indexed: ClassVar[Measure] = TracIn()

    def __post_init__(self) -> None:
        if not (np.isfinite(self.share) and self.share > 0):
            raise ConfigError(
                f"trak: λ is {self.share:g} × mean eigenvalue; the factor must be above 0"
            )

    @property
    def name(self) -> str:
        """`trak`, or `trak:SHARE`."""
        return "trak" if self.share == 1 else f"trak:{self.share:g}"

    @property
    def is_fitted(self) -> bool:
        """Whether the factors are known."""
        return self.lambdas is not None

    def identity(self) -> Identity:
        """Name, share and λ."""
        return {"name": "trak", "share": self.share, "lambdas": list(self.lambdas or ())}

    def weights(self, rows: Rows, checkpoint: int) -> NDArray[np.float32]:
        """Return the norms."""
        return self.indexed.weights(rows, checkpoint)

    def fitted(self, store: Store) -> Self:
        """Fit to ΦᵀΦ of a store in one pass over it; return itself if already fitted.

        Creates one float64 factor `[dim, dim]` per checkpoint, with little extra memory: 2 GiB at
        16,384 dimensions. One such factor is held in memory, the others in temporary files. A
        checkpoint whose gradients are all zero has no factor and contributes 0 to scores.
        """
        if self.is_fitted:
            return self
        return self.of(grams(store), store.samples)

    def of(self, grams: Iterable[NDArray[np.float64]], samples: int) -> Self:
        """Fit to ΦᵀΦ of each checkpoint, given in order; the arrays are overwritten."""
        lambdas, factors = [], list[Cholesky | None]()
        held = 0
        for gram in grams:
            lambdas.append(self.share * float(np.trace(gram)) / min(len(gram), samples))
            gram[np.diag_indices(len(gram))] += lambdas[-1]
            factor = Cholesky(gram) if lambdas[-1] > 0 else None
            del gram  # frees it before the next one is computed
            if factor is not None:
                held += factor.nbytes
                if held > _HELD:
                    held -= factor.nbytes
                    factor.put_aside()
            factors.append(factor)
        return replace(self, lambdas=tuple(lambdas), _factors=tuple(factors))

    def prepared(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Multiply queries by (ΦᵀΦ + λI)⁻¹ of each checkpoint, in float64."""
        if self.lambdas is None:
            raise ConfigError("trak is not fitted to a store: use trak.fitted(store)")
        parts = np.split(queries, len(self._factors), axis=1)
        return np.concatenate(
            [
                np.zeros_like(part) if factor is None else factor.solve(part).astype(np.float32)
                for factor, part in zip(self._factors, parts, strict=True)
            ],
            axis=1,
        )


def grams(store: Store) -> Iterator[NDArray[np.float64]]:
    """Yield ΦᵀΦ at each checkpoint of a store, float64 `[dim, dim]`, in one pass over it.

    Φ are TracIn's features, independent of checkpoint weights; sums are in float64.
    """
    features = Features(Trak.indexed, (1.0,) * store.checkpoints)
    with progress(store.checkpoints * store.samples, "preconditioning", "samples") as bar:
        for checkpoint in range(store.checkpoints):
            gram = np.zeros((store.dim, store.dim))
            waiting: list[NDArray[np.float32]] = []
            for start, stop in features.spans(store):
                rows = store.rows(checkpoint, start, stop)
                waiting.append(features.part(store, checkpoint, rows))
                if sum(map(len, waiting)) >= _SAMPLES or stop == store.samples:
                    _add_products(gram, np.concatenate(waiting).astype(np.float64))
                    waiting.clear()
                bar.update(stop - start)
            for low in range(0, store.dim, _COLUMNS):
                high = low + _COLUMNS
                gram[:low, low:high] = gram[low:high, :low].T
            yield gram
            del gram


def _add_products(gram: NDArray[np.float64], part: NDArray[np.float64]) -> None:
    """Add ΦᵀΦ of samples `[samples, dim]`, on and below the diagonal and slightly above it."""
    for low in range(0, len(gram), _COLUMNS):
        high = low + _COLUMNS
        gram[low:high, :high] += part[:, low:high].T @ part[:, :high]
