"""Small Parquet files that decode to gigabytes, and footers that do not say so."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def written(table: pa.Table, **options: Any) -> bytes:
    out = BytesIO()
    pq.write_table(table, out, **{"compression": "zstd", **options})
    return out.getvalue()


def lying(content: bytes, **claims: int) -> bytes:
    """A file whose footer claims other numbers for its only column.

    Args:
        content: the file, of one column and one row group.
        claims: `rows`, `values` or `nbytes`, which must be numbers that occur nowhere else.
    """
    group = pq.read_metadata(BytesIO(content)).row_group(0)
    column = group.column(0)
    found = {
        "rows": {group.num_rows},
        "values": {column.num_values},
        "nbytes": {group.total_byte_size, column.total_uncompressed_size},
    }
    footer = _footer(content)
    body = content[: -8 - len(footer)]
    for name, claim in claims.items():
        for true in found[name]:
            assert _number(true) in footer
            footer = footer.replace(_number(true), _number(claim))
    return _with_footer(body, footer)


def _footer(content: bytes) -> bytes:
    return content[-8 - int.from_bytes(content[-8:-4], "little") : -8]


def _with_footer(body: bytes, footer: bytes) -> bytes:
    return body + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def _number(value: int) -> bytes:
    """A number as Thrift writes it."""
    value, out = value << 1, bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


@cache
def texts(count: int = 30, length: int = 10**7) -> bytes:
    """Long texts that compress well."""
    return written(pa.table({"id": ["y" * length + str(n) for n in range(count)]}))


@cache
def nested(count: int = 6 * 10**7) -> bytes:
    """One row with many nulls."""
    lists = pa.ListArray.from_arrays([0, count], pa.nulls(count, pa.int32()))
    return written(pa.table({"id": lists}))


def repeated(count: int = 10**6, length: int = 10**5) -> bytes:
    """One long text, referred to by many rows."""
    ids = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), ["y" * length])
    return written(pa.table({"id": ids}), store_schema=False)


def fixed(count: int = 10_000, length: int = 10**5) -> bytes:
    """One long value of fixed length, referred to by many rows."""
    table = pa.table({"id": pa.array([b"y" * length] * count, pa.binary(length))})
    return written(table, store_schema=False)


def prefixed(count: int = 20_000) -> bytes:
    """Texts that are coded as prefixes of those before: their sizes add up to a square."""
    table = pa.table({"id": ["y" * (count - n) for n in range(count)]})
    return written(table, use_dictionary=False, column_encoding={"id": "DELTA_BYTE_ARRAY"})


def endless(rows: int = 54_321) -> bytes:
    """A footer that claims more rows than its pages hold."""
    table = pa.table({"id": pa.array(range(rows), pa.int64())})
    return lying(written(table, use_dictionary=False), rows=10**11)


def many_times(times: int = 10) -> bytes:
    """A footer whose row groups are all the same pages."""
    content = written(pa.table({"id": pa.nulls(10**6, pa.int64())}))
    metadata = pq.read_metadata(BytesIO(content))
    for _ in range(times):
        metadata.append_row_groups(metadata)
    out = BytesIO()
    metadata.write_metadata_file(out)
    return _with_footer(content[: -8 - len(_footer(content))], _footer(out.getvalue()))


BOMBS: dict[str, Callable[[], bytes]] = {
    "texts": texts,
    "texts, not told": lambda: lying(texts(), nbytes=99),
    "nested": nested,
    "nested, not told": lambda: lying(nested(), values=1, nbytes=99),
    "fixed": fixed,
    "prefixed": prefixed,
    "endless": endless,
    "many times": many_times,
}
"""Files that would take gigabytes, whether or not equal texts share memory."""
