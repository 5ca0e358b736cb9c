"""Reading of untrusted Parquet files in bounded memory.

A few bytes of Parquet can encode billions of rows, a text repeated a million times, or one row with
millions of values. So what a file claims to hold is compared with its size before it is decoded.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

_FREE_BYTES: Final = 256 * 2**20
_FREE_VALUES: Final = 1 << 20


def read_bounded(content: bytes, most_rows: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Decode a Parquet file; equal texts share memory.

    Args:
        content: bytes of the file.
        most_rows: number of rows that it may have.
        columns: names of the columns to read; by default all.

    Raises:
        ValueError: if it claims to hold more than its size can.
        OSError, pyarrow.ArrowException: if it is no Parquet file.
    """
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(BytesIO(content))
    if metadata.num_rows > most_rows:
        raise ValueError(f"it has {metadata.num_rows} rows; there are {most_rows} samples")
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    expanded = sum(group.total_byte_size for group in groups)
    values = sum(
        group.column(number).num_values for group in groups for number in range(group.num_columns)
    )
    plain = metadata.num_rows * metadata.num_columns
    if expanded > _FREE_BYTES + 100 * len(content) or values > plain + max(
        _FREE_VALUES, 8 * len(content)
    ):
        raise ValueError(f"{len(content)} bytes cannot hold {values} values, {expanded} bytes")
    texts = [
        metadata.schema.column(number).path
        for number in range(metadata.num_columns)
        if metadata.schema.column(number).physical_type == "BYTE_ARRAY"
    ]
    file: Any = pq.ParquetFile(BytesIO(content), read_dictionary=texts)
    return file.read(columns=columns)


def values_of(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column; equal texts are one Python string."""
    import pyarrow as pa

    found: list[Any] = []
    for chunk in column.chunks:
        if isinstance(chunk, pa.DictionaryArray):
            texts, places = chunk.dictionary.to_pylist(), chunk.indices.to_pylist()
            found += [None if place is None else texts[place] for place in places]
        else:
            found += chunk.to_pylist()
    return found
