"""The protocol of an event plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from gradstore.store.format.spec import Identity


@dataclass(frozen=True)
class Events:
    """The events of some samples at one checkpoint.

    Attributes:
        timestep: int64 `[samples, slots]`.
        key: noise keys, uint64 `[samples, slots, draws]`.
        flip: whether training saw each sample flipped from left to right, bool `[samples]`; None if
            it flipped none.
    """

    timestep: NDArray[np.int64]
    key: NDArray[np.uint64]
    flip: NDArray[np.bool_] | None = None


class EventPlan(Protocol):
    """Selects the events of a store's rows.

    One whose events have a `flip` has an attribute `flips`, True.
    """

    slots: int

    def identity(self) -> Identity:
        """The identity of the events, as JSON."""

    def require(self, ids: Sequence[str]) -> None:
        """Raise `DatasetError` unless every sample has events; called before long work."""

    def at(self, checkpoint: int, ids: Sequence[str]) -> Events:
        """The events of samples `ids` at the checkpoint with this number."""
