"""Protocol of a measure, which weights rows to define influence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from gradstore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from gradstore.store.format.rows import Rows
    from gradstore.store.format.spec import Identity
    from gradstore.store.reader import Store


class Measure(Protocol):
    """Computes a weight per row from stored columns: norm, loss, timestep, checkpoint."""

    @property
    def name(self) -> str:
        """Name accepted by `measure_of`, such as `power:0.5`; also part of the index path."""

    def identity(self) -> Identity:
        """Name, parameters and fitted values, as JSON."""

    def fitted(self, store: Store) -> Measure:
        """Return the measure fitted to a training store; itself if it has nothing to fit.

        Query rows are weighted with the same fitted values.
        """

    def weights(self, rows: Rows, checkpoint: int) -> NDArray[np.float32]:
        """Weight of each row at a checkpoint position, float32 `[samples, slots]`.

        Weights depend on norm, loss and timestep; directions may be empty, `[samples, slots, 0]`.
        """


@runtime_checkable
class QuerySide(Measure, Protocol):
    """A measure that also transforms the features of queries."""

    @property
    def indexed(self) -> Measure:
        """Measure of the training samples' features; its index serves this measure."""

    def fitted(self, store: Store) -> QuerySide:
        """See `Measure`."""

    def prepared(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Transformed features of queries, float32 `[queries, checkpoints × dim]`."""


@runtime_checkable
class SampleSide(Measure, Protocol):
    """A measure that also transforms each sample's mean over slots, in training and query stores.

    Its slots cannot be matched.
    """

    def moved(
        self, parts: NDArray[np.float32], checkpoint: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Unit vectors that replace means over slots, and lengths that they were divided by.

        Args:
            parts: weighted means over slots, float32 `[samples, dim]`.
            checkpoint: position of the checkpoint.

        Returns:
            float32 `[samples, dim]` and `[samples]`.
        """


def is_of_rows(measure: Measure) -> bool:
    """Whether scores are sums over pairs of rows, so that they can be split and have known errors.

    Examples:
        >>> from indexer import measure_of
        >>> is_of_rows(measure_of("retrac")), is_of_rows(measure_of("trak"))
        (True, False)
    """
    return not isinstance(measure, QuerySide | SampleSide)


@runtime_checkable
class KernelMeasure(QuerySide, Protocol):
    """A query-side measure that is fitted to ΦᵀΦ, which is kept beside the store."""

    @property
    def is_fitted(self) -> bool:
        """Whether it is fitted already."""

    def of(self, grams: Iterable[NDArray[np.float64]], samples: int) -> Self:
        """The measure fitted to ΦᵀΦ of each checkpoint.

        Args:
            grams: ΦᵀΦ, `[dim, dim]`, of each checkpoint in order; they may be overwritten.
            samples: number of samples, the rows of Φ.
        """


def require_share(measure: str, name: str, value: float) -> None:
    """Raise `ConfigError` unless a measure's parameter is between 0 and 1."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{measure}: {name} is {value:g}; it must be from 0 to 1")
