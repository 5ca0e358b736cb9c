"""A Parquet file whose row groups are decoded when they are read, each column by itself."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from gradstore.store.format.columns import Column, readable
from gradstore.store.format.parquet import repeating, require_bounded_group

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

# Decoded pieces that a file keeps.
_KEPT_BYTES: Final = 64 << 20


class Pieces:
    """The columns of a Parquet file, read piece by piece. It may be used by several threads.

    Args:
        source: the file.
        metadata: its footer.
        where: name of the file in error messages.
        plain: columns of texts that mostly differ.
    """

    def __init__(
        self, source: BinaryIO, metadata: Any, *, where: str, plain: Sequence[str]
    ) -> None:
        import pyarrow.parquet as pq

        self._source, self._metadata, self._where = source, metadata, where
        self._texts = repeating(metadata, plain)
        self._file = pq.ParquetFile(
            source,
            metadata=metadata,
            read_dictionary=self._texts,
            page_checksum_verification=True,
        )
        self._lock = Lock()
        self._kept: OrderedDict[tuple[str, int], pa.Array] = OrderedDict()
        self._nbytes = 0

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        names: list[str] = self._file.schema_arrow.names
        return names

    def column(self, name: str, check: Callable[[pa.Array], None] = lambda _: None) -> Column:
        """A column.

        Args:
            name: its name.
            check: raises `ValueError` if the values of a piece are not as they must be.
        """
        groups = range(self._metadata.num_row_groups)
        lengths = [self._metadata.row_group(number).num_rows for number in groups]
        loads = [partial(self._load, name, number, check) for number in groups]
        return Column(lengths, loads, self._where)

    def _load(self, name: str, number: int, check: Callable[[pa.Array], None]) -> pa.Array:
        key = name, number
        with self._lock, readable(self._where):
            if key not in self._kept:
                piece = self._decoded(name, number)
                check(piece)
                self._kept[key] = piece
                self._nbytes += piece.nbytes
                while len(self._kept) > 1 and self._nbytes > _KEPT_BYTES:
                    self._nbytes -= self._kept.popitem(last=False)[1].nbytes
            self._kept.move_to_end(key)
            return self._kept[key]

    def _decoded(self, name: str, number: int) -> pa.Array:
        require_bounded_group(self._source, self._metadata, number, name, self._texts)
        rows = self._metadata.row_group(number).num_rows
        table = self._file.read_row_group(number, columns=[name], use_threads=False)
        if table.num_rows != rows:
            raise ValueError(f"row group {number} holds {table.num_rows:,} rows, not {rows:,}")
        return table.column(name).combine_chunks()
