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
    from collections.abc import Collection, Iterator, Sequence

    import pyarrow as pa

    from gradstore.store.format.pages import Page

_FREE_BYTES: Final = 256 * 2**20
_KEPT_BYTES: Final = 64 * 2**20
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


def open_bounded(source: BinaryIO, *, shared: bool, plain: Sequence[str] = ()) -> Any:
    """Open a Parquet file whose columns can all be decoded in bounded memory.

    Decoded, it takes at most 256 MiB, or a hundred times its size if that is more.

    Args:
        source: the file.
        shared: decode columns of texts to dictionaries, so that equal texts share memory. Their
            values are then meant to become Python objects, so their number is bounded, too.
        plain: columns of texts that are not decoded to dictionaries, as most of them differ.

    Returns:
        A `pyarrow.parquet.ParquetFile`.

    Raises:
        ValueError: if it holds more than its size can.
        OSError, pyarrow.ArrowException: if it is no Parquet file.
    """
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(source)
    texts = repeating(metadata, plain) if shared else []
    _require_bounded(source, metadata, texts, shared=shared)
    source.seek(0)
    return pq.ParquetFile(source, read_dictionary=texts)


def repeating(metadata: Any, plain: Sequence[str] = ()) -> list[str]:
    """Columns that are decoded to dictionaries: texts, unless they are among the `plain` ones.

    pyarrow cannot always, if they are nested.
    """
    leaves = [metadata.schema.column(number) for number in range(metadata.num_columns)]
    return [
        one.path
        for one in leaves
        if one.physical_type == "BYTE_ARRAY" and one.path == one.name and one.path not in plain
    ]


def require_bounded_group(
    source: BinaryIO, metadata: Any, number: int, name: str, texts: Collection[str]
) -> None:
    """Require that a column's values in one row group can be decoded in bounded memory.

    They take at most 256 MiB, or a hundred times their bytes in the file if that is more, and are
    meant to become Python objects, so their number is bounded, too.

    Args:
        source: the file.
        metadata: its footer.
        number: number of the row group.
        name: name of the column, which may be nested.
        texts: columns that are decoded to dictionaries.

    Raises:
        ValueError: if they can take more.
    """
    group = metadata.row_group(number)
    for place in range(metadata.num_columns):
        leaf = metadata.schema.column(place)
        if not f"{leaf.path}.".startswith(f"{name}."):
            continue
        column = group.column(place)
        source.seek(_first(column))
        source.read(min(column.total_compressed_size, _KEPT_BYTES))  # one request for its pages
        most = _FREE_BYTES + _TIMES * column.total_compressed_size
        most_values = group.num_rows + max(_FREE_VALUES, 8 * column.total_compressed_size)
        nbytes = values = 0
        for expanded, count in _decoded(source, group, place, leaf, texts):
            nbytes, values = nbytes + expanded, values + count
            if nbytes > most or values > most_values:
                raise ValueError(
                    f"column {name!r} decodes to {nbytes:,} bytes and {values:,} values or more"
                )


def _require_bounded(
    source: BinaryIO, metadata: Any, texts: Collection[str], *, shared: bool
) -> None:
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
            for expanded, count in _decoded(source, group, place, leaf, texts):
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
    source: BinaryIO, group: Any, place: int, leaf: Any, texts: Collection[str]
) -> Iterator[tuple[int, int]]:
    """Yield bytes and number of the values of each page of a column chunk, at most."""
    column = group.column(place)
    width = leaf.length if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" else 0
    width = (width or _WIDTHS.get(leaf.physical_type, 8)) + (
        _LEVELS if leaf.max_repetition_level else 0
    )
    repeated = leaf.physical_type == "BYTE_ARRAY" and leaf.path not in texts
    entry = total = 0
    for page in pages(source, _first(column), column.total_compressed_size):
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


def _first(column: Any) -> int:
    """The first byte of a column chunk."""
    first: int = column.data_page_offset
    return min(first, column.dictionary_page_offset or first)


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


def values_of(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    """The values of a column; equal texts are one Python string."""
    import pyarrow as pa

    found: list[Any] = []
    for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        if isinstance(chunk, pa.DictionaryArray):
            texts, places = chunk.dictionary.to_pylist(), chunk.indices.to_pylist()
            found += [None if place is None else texts[place] for place in places]
        else:
            found += chunk.to_pylist()
    return found
