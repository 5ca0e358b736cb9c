"""The protocol of a measure: how rows become influence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from gradstore.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gradstore.store.format.rows import Rows
    from gradstore.store.format.spec import Identity
    from gradstore.store.reader import Store


class Measure(Protocol):
    """A weight per row, from what the store holds of it: norm, timestep, checkpoint."""

    @property
    def name(self) -> str:
        """What `measure_of` makes it of, such as `power:0.5`; also names the index's folder."""

    def identity(self) -> Identity:
        """Name, parameters and what was learned from a store, as JSON."""

    def fitted(self, store: Store) -> Measure:
        """The measure with what it must know of a training store; itself, if that is nothing.

        Queries are weighed by what was learned from the training store, too.
        """

    def weights(self, rows: Rows, checkpoint: int) -> NDArray[np.float32]:
        """Weight of each row, float32 `[samples, slots]`, at a checkpoint's place.

        By norm, loss and timestep: directions may be left out, `[samples, slots, 0]`.
        """


@runtime_checkable
class QuerySide(Measure, Protocol):
    """What a measure has beside weights if it changes the features of queries."""

    @property
    def indexed(self) -> Measure:
        """The measure of the training samples' features, whose index serves this one."""

    def fitted(self, store: Store) -> QuerySide:
        """See `Measure`."""

    def prepared(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features of queries, float32 `[queries, checkpoints × dim]`, changed."""


def require_share(measure: str, name: str, value: float) -> None:
    """Raise `ConfigError` unless a parameter of a measure is from 0 to 1."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{measure}: {name} is {value:g}; it must be from 0 to 1")
