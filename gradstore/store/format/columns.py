"""Columns of a manifest as they lie in its file: decoded when they are read, a piece at a time.

A store of ten million samples has a gigabyte of ids, digests and metadata as Python objects. Most
work needs the ids of a few samples, or looks through one column once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from gradstore.errors import DatasetError, StoreError
from gradstore.store.format.parquet import values_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa
    from numpy.typing import NDArray

    Load = Callable[[], pa.Array]


class Column(Sequence[Any]):
    """The values of a column, in order; a slice is a list.

    Args:
        lengths: number of values of each piece.
        loads: reads each piece; may raise `StoreError`.
        where: name of the file in error messages.
    """

    def __init__(self, lengths: Sequence[int], loads: Sequence[Load], where: str) -> None:
        self._where = where
        self._starts = np.cumsum([0, *lengths])
        self._loads = loads
        self._last: tuple[int, pa.Array] | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, row: int) -> Any: ...

    @overload
    def __getitem__(self, row: slice) -> list[Any]: ...

    def __getitem__(self, row: int | slice) -> Any:
        if isinstance(row, slice):
            return self.at(np.arange(*row.indices(len(self))))
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        piece = int(np.searchsorted(self._starts, row, side="right")) - 1
        place = row - int(self._starts[piece])
        return self._values(self._piece(piece).slice(place, 1))[0]

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(map(self._values, self.pieces()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(
            mine == theirs for mine, theirs in zip(self, other, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))

    def __reduce__(self) -> tuple[type, tuple[list[Any]]]:
        return list, (list(self),)  # another process may not have the file

    def pieces(self) -> Iterator[pa.Array]:
        """The values as arrays; the same text may be in a dictionary once."""
        return map(self._piece, range(len(self._loads)))

    def at(self, rows: NDArray[np.int64]) -> list[Any]:
        """Values by row number, in any order; each piece is read once."""
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        order = np.argsort(owner, kind="stable")
        found: list[Any] = [None] * len(rows)
        for here in np.split(order, np.flatnonzero(np.diff(owner[order])) + 1):
            if len(here):
                piece = int(owner[here[0]])
                local = rows[here] - self._starts[piece]
                values = self._values(self._piece(piece).take(local))
                for place, value in zip(here.tolist(), values, strict=True):
                    found[place] = value
        return found

    def chosen(self, rows: NDArray[np.int64]) -> Column:
        """The column of some rows, by number."""
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        edges = np.flatnonzero(np.diff(owner)) + 1
        cuts = list(pairwise([0, *edges.tolist(), len(rows)]))

        def load(low: int, high: int) -> Load:
            piece = int(owner[low])
            return lambda: self._piece(piece).take(rows[low:high] - self._starts[piece])

        lengths = [high - low for low, high in cuts]
        return Column(lengths, [load(*cut) for cut in cuts], self._where)

    def coded(self) -> Iterator[tuple[list[Any], NDArray[np.int64]]]:
        """See `coded`."""
        import pyarrow as pa

        for piece in self.pieces():
            if pa.types.is_nested(piece.type) or pa.types.is_null(piece.type):
                yield self._values(piece), np.arange(len(piece))
                continue
            if not isinstance(piece, pa.DictionaryArray):
                piece = piece.dictionary_encode()  # noqa: PLW2901
            distinct = self._values(piece.dictionary)
            places = piece.indices.fill_null(len(distinct)).to_numpy(zero_copy_only=False)
            yield [*distinct, None], places.astype(np.int64)

    @classmethod
    def joined(cls, columns: Sequence[Column | int]) -> Column:
        """Columns one after another; a number stands for so many nulls."""
        import pyarrow as pa

        lengths: list[int] = []
        loads: list[Load] = []
        for one in columns:
            if isinstance(one, Column):
                lengths += np.diff(one._starts).tolist()
                loads += one._loads
            else:
                lengths.append(one)
                loads.append(partial(pa.nulls, one))
        where = next((one._where for one in columns if isinstance(one, Column)), "a manifest")
        return cls(lengths, loads, where)

    def _piece(self, number: int) -> pa.Array:
        last = self._last
        if last is None or last[0] != number:
            self._last = last = number, self._loads[number]()
        return last[1]

    def _values(self, piece: pa.Array) -> list[Any]:
        with readable(self._where):
            return values_of(piece)


def coded(column: Sequence[Any]) -> Iterator[tuple[list[Any], NDArray[np.int64]]]:
    """Distinct values and the place of each row's among them, for some rows after another.

    So work on the values of a long column is done once per distinct value.
    """
    if isinstance(column, Column):
        yield from column.coded()
    else:
        yield list(column), np.arange(len(column))


def counted(column: Sequence[Any], change: Callable[[Any], Any] | None = None) -> Counter[Any]:
    """How often each value but None occurs, after a change of them, such as `str`."""
    found: Counter[Any] = Counter()
    for values, numbers in coded(column):
        counts = np.bincount(numbers, minlength=len(values)).tolist()
        for value, count in zip(values, counts, strict=True):
            if count and value is not None:
                found[value if change is None else change(value)] += count
    return found


def at(column: Sequence[Any], rows: Sequence[int] | NDArray[np.int64]) -> list[Any]:
    """Values of some rows, by number, in any order."""
    numbers = np.asarray(rows, np.int64)
    if isinstance(column, Column):
        return column.at(numbers)
    return [column[row] for row in numbers.tolist()]


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Context in which errors of an untrusted manifest become a `StoreError`."""
    import pyarrow as pa

    try:
        yield
    except (
        OSError,
        LookupError,
        ValueError,
        OverflowError,  # a time before the year 1 or after 9999
        pa.ArrowException,
        DatasetError,
    ) as error:
        raise StoreError(
            f"{where} cannot be read as a manifest: {error}. Restore the file from a copy of "
            "the store, or collect again."
        ) from error
