"""Parquet files are decoded in memory in proportion to their size, whatever their footers claim."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradstore.store.format.pages import pages
from gradstore.store.format.parquet import open_bounded, values_of
from tests.support.hostile_parquet import BOMBS, repeated, written


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", BOMBS)
def test_what_decodes_to_gigabytes_is_not_decoded(name: str, shared: bool) -> None:
    with pytest.raises(ValueError, match="bytes|DELTA_BYTE_ARRAY|values"):
        open_bounded(BytesIO(BOMBS[name]()), shared=shared)


def test_texts_that_share_memory_may_be_repeated() -> None:
    content = repeated()
    with pytest.raises(ValueError, match="decode to"):
        open_bounded(BytesIO(content), shared=False)
    found = values_of(open_bounded(BytesIO(content), shared=True).read()["id"])
    assert len(found) == 10**6
    assert len(set(map(id, found))) == 1


TABLE = pa.table(
    {
        "id": [str(n) for n in range(5000)],
        "label": ["cat", None, "a longer label", "dog", ""] * 1000,
        "score": np.random.default_rng(0).random(5000),
        "lists": [[1, 2, None], None, [], [3], [4, 5]] * 1000,
        "image": [{"bytes": b"\x00" * 300, "path": None}, None] * 2500,
        "nulls": pa.nulls(5000, pa.int32()),
        "kept": [True, False] * 2500,
        "fixed": pa.array([b"0123456789abcdef"] * 5000, pa.binary(16)),
        "day": pa.array([1, 2] * 2500, pa.date32()),
    }
)


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "brotli", "lz4", "zstd"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize(
    "options",
    [{}, {"use_dictionary": False}, {"row_group_size": 700}, {"write_page_checksum": True}],
    ids=["plainly", "no dictionary", "groups", "checksums"],
)
def test_usual_files_are_read(compression: str, version: str, options: dict[str, Any]) -> None:
    content = written(TABLE, compression=compression, data_page_version=version, **options)
    assert open_bounded(BytesIO(content), shared=False).read() == TABLE
    shared = open_bounded(BytesIO(content), shared=True).read()
    assert values_of(shared["label"]) == TABLE["label"].to_pylist()
    group = pq.read_metadata(BytesIO(content)).row_group(0)
    for number in range(group.num_columns):
        column = group.column(number)
        start = column.dictionary_page_offset or column.data_page_offset
        found = list(pages(BytesIO(content), start, column.total_compressed_size))
        assert sum(page.values for page in found if not page.dictionary) == column.num_values
        last = found[-1]
        assert last.start + last.stored == start + column.total_compressed_size


def test_more_rows_than_python_should_hold_are_refused() -> None:
    content = written(pa.table({"number": pa.array([0] * 1_500_000)}))
    with pytest.raises(ValueError, match="1,500,000 rows"):
        open_bounded(BytesIO(content), shared=True)
    assert open_bounded(BytesIO(content), shared=False).metadata.num_rows == 1_500_000


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_changed_files_are_read_or_refused(data: st.DataObject) -> None:
    content = bytearray(written(TABLE.slice(0, 40)))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    for shared in (True, False):
        try:
            open_bounded(BytesIO(bytes(content)), shared=shared).read()
        except (ValueError, OSError, pa.ArrowException):
            continue


@given(st.binary(max_size=200))
def test_any_bytes_are_pages_or_refused(content: bytes) -> None:
    try:
        assert sum(page.nbytes for page in pages(BytesIO(content), 0, len(content))) >= 0
    except ValueError:
        return
