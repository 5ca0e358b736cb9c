"""Reading of untrusted Parquet files in bounded memory.

A few bytes of Parquet can encode billions of rows, a text repeated a million times, or one row with
millions of values. So what its pages decode to is compared with the file's size before any of them
is decoded. The footer is not believed: see `pages`.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from gradstore.store.format.pages import DICTIONARY_CODED, PREFIX_CODED, longest, pages, size_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa

    from gradstore.store.format.pages import Page

_FREE_BYTES: Final = 256 * 2**20
_FREE_VALUES: Final = 1 << 20
_TIMES: Final = 100
_WIDTHS: Final = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "BYTE_ARRAY": 8}
_LEVELS: Final = 4  # bytes per value of a nested column


def read_bounded(content: bytes, most_rows: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Decode a Parquet file; equal texts share memory.

    Args:
        content: bytes of the file.
        most_rows: number of rows that it may have.
        columns: names of the columns to read; by default all.

    Raises:
        ValueError: if it holds more than its size can.
        OSError, pyarrow.ArrowException: if it is no Parquet file.
    """
    file = open_bounded(BytesIO(content), shared=True)
    if file.metadata.num_rows > most_rows:
        raise ValueError(f"it has {file.metadata.num_rows} rows; there are {most_rows} samples")
    return file.read(columns=columns)


def open_bounded(source: BinaryIO, *, shared: bool) -> Any:
    """Open a Parquet file whose columns can all be decoded in bounded memory.

    Decoded, it takes at most 256 MiB, or a hundred times its size if that is more.

    Args:
        source: the file.
        shared: decode columns of texts to dictionaries, so that equal texts share memory. Their
            values are then meant to become Python objects, so their number is bounded, too.

    Returns:
        A `pyarrow.parquet.ParquetFile`.

    Raises:
        ValueError: if it holds more than its size can.
        OSError, pyarrow.ArrowException: if it is no Parquet file.
    """
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(source)
    _require_bounded(source, metadata, shared=shared)
    columns = [metadata.schema.column(number) for number in range(metadata.num_columns)]
    texts = [one.path for one in columns if shared and _flat_text(one)]
    source.seek(0)
    return pq.ParquetFile(source, read_dictionary=texts)


def _require_bounded(source: BinaryIO, metadata: Any, *, shared: bool) -> None:
    size = size_of(source)
    most_bytes = _FREE_BYTES + _TIMES * size
    most_rows = max(_FREE_VALUES, 8 * size)
    most_values = most_rows + min(most_rows, metadata.num_rows) * metadata.num_columns
    nbytes = values = rows = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows += group.num_rows
        for place in range(metadata.num_columns):
            leaf = metadata.schema.column(place)
            for expanded, count in _decoded(source, group, place, leaf, shared=shared):
                nbytes, values = nbytes + expanded, values + count
                # At once: a footer may name the same pages many times.
                if nbytes > most_bytes or (shared and values > most_values):
                    raise ValueError(
                        f"its {size:,} bytes decode to {nbytes:,} bytes or more ({values:,} values "
                        "so far), which is far more than usual for its size"
                    )
    if rows != metadata.num_rows or (shared and rows > most_rows):
        raise ValueError(
            f"it claims {metadata.num_rows:,} rows, its row groups {rows:,}, and it has {size:,} "
            "bytes"
        )


def _decoded(
    source: BinaryIO, group: Any, place: int, leaf: Any, *, shared: bool
) -> Iterator[tuple[int, int]]:
    """Yield bytes and number of the values of each page of a column chunk, at most."""
    column = group.column(place)
    first = [column.data_page_offset]
    if column.dictionary_page_offset:
        first.append(column.dictionary_page_offset)
    width = leaf.length if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" else 0
    width = (width or _WIDTHS.get(leaf.physical_type, 8)) + (
        _LEVELS if leaf.max_repetition_level else 0
    )
    repeated = leaf.physical_type == "BYTE_ARRAY" and not (shared and _flat_text(leaf))
    entry = total = 0
    for page in pages(source, min(first), column.total_compressed_size):
        if page.dictionary:
            yield page.nbytes, page.values
            entry = _longest(source, page, column.compression) if repeated else 0
            continue
        if page.encoding == PREFIX_CODED:
            raise ValueError(
                f"column {leaf.path!r} has encoding DELTA_BYTE_ARRAY, whose decoded size no header "
                "tells. Write it in another one"
            )
        coded = page.encoding in DICTIONARY_CODED
        yield page.nbytes + page.values * (width + (entry if coded else 0)), page.values
        total += page.values
    if group.num_rows > total:
        raise ValueError(
            f"column {leaf.path!r} holds {total:,} values for {group.num_rows:,} rows of a group"
        )


def _flat_text(leaf: Any) -> bool:
    """Whether a column can be decoded to a dictionary: pyarrow cannot always, if it is nested."""
    return bool(leaf.physical_type == "BYTE_ARRAY" and leaf.path == leaf.name)


def _longest(source: BinaryIO, page: Page, compression: str) -> int:
    """Bytes of the longest text of a dictionary; those of its page if it cannot be decompressed."""
    import pyarrow as pa

    if page.nbytes > _FREE_BYTES:
        return page.nbytes
    source.seek(page.start)
    content = source.read(page.stored)
    if compression == "UNCOMPRESSED":
        return longest(content)
    codec = {"LZ4": "lz4_raw"}.get(compression, compression.lower())
    try:
        return longest(pa.decompress(content, page.nbytes, codec, asbytes=True))
    except (ValueError, OSError, pa.ArrowException):
        return page.nbytes


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
