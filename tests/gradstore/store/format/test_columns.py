"""Columns that are read piece by piece hold what lists hold."""

from __future__ import annotations

import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradstore import delete, open_store, vacuum
from gradstore.errors import DatasetError, StoreError
from gradstore.store import part as parts
from gradstore.store.format import manifest as manifests
from gradstore.store.format.columns import Column, at, coded, counted
from gradstore.store.format.manifest import Manifest, manifest_spec
from gradstore.store.format.parquet import repeating
from gradstore.store.objects.protocol import ChangedError
from gradstore.store.objects.ranged import RangedFile
from gradstore.store.reader import Store
from gradstore.store.verify import verify
from tests.support.written_stores import filled, grown

COUNT = 57
IDS = [f"s{n}" if n % 9 else f"é{n}" for n in range(COUNT)]
LABELS = [None if n % 7 == 0 else f"label {n % 3}" for n in range(COUNT)]
LISTS = [[n, None] if n % 2 else None for n in range(COUNT)]
GIVEN = Manifest(
    IDS,
    [f"{n:032x}" for n in range(COUNT)],
    {"label": LABELS, "score": [n / 4 for n in range(COUNT)], "tags": LISTS},
)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "PIECE", 10)
    monkeypatch.setattr(parts, "_WHOLE_BYTES", 100)


def stored(content: bytes | None = None, **changes: Any) -> Manifest:
    content = GIVEN.content() if content is None else content
    spec = manifest_spec(content).model_copy(update=changes)
    return Manifest.stored(BytesIO(content), spec, where="m", samples=COUNT)


def test_what_is_stored_is_what_was_given() -> None:
    found = stored()
    assert isinstance(found.ids, Column)
    assert found == GIVEN
    assert found == Manifest.parse(GIVEN.content(), where="m", samples=COUNT)
    assert found != Manifest(IDS, GIVEN.digests)
    assert Manifest.parse(found.content(), where="m", samples=COUNT) == GIVEN
    assert found.hash() == GIVEN.hash()
    assert found.samples_sha256(8, 33) == GIVEN.samples_sha256(8, 33)
    assert pickle.loads(pickle.dumps(found)) == GIVEN  # noqa: S301, its own
    found.require_same(GIVEN, store="S")


@given(st.lists(st.integers(0, COUNT - 1), max_size=80), st.data())
def test_rows_in_any_order(rows: list[int], data: st.DataObject) -> None:
    found = stored()
    numbers = np.array(rows, np.int64)
    for name, column in found.metadata.items():
        given_column = GIVEN.metadata[name]
        assert at(column, rows) == at(given_column, rows) == [given_column[row] for row in rows]
        if rows:
            some = found.chosen(numbers).metadata[name]
            assert list(some) == [given_column[row] for row in rows]
            row = data.draw(st.integers(-len(rows), len(rows) - 1))
            assert some[row] == given_column[rows[row]]
    low, high, step = (data.draw(st.integers(-70, 70)) for _ in range(3))
    assert found.ids[low : high : step or None] == IDS[low : high : step or None]
    with pytest.raises(IndexError):
        _ = found.ids[COUNT]


def test_values_are_counted_and_coded() -> None:
    for found in (stored(), GIVEN):
        for name in ("label", "score"):
            column = found.metadata[name]
            values = [some[code] for some, codes in coded(column) for code in codes.tolist()]
            assert values == list(GIVEN.metadata[name])
        assert counted(found.metadata["label"]) == {
            f"label {n}": LABELS.count(f"label {n}") for n in range(3)
        }
        assert counted(found.metadata["tags"], str)["[3, None]"] == 1


def test_parts_with_different_columns_are_joined() -> None:
    more = Manifest(["x"], ["1"], {"label": [7], "year": [1999]})
    read = Manifest.parse(more.content(), where="m", samples=1)
    for joined in (Manifest.joined([stored(), read]), Manifest.joined([GIVEN, more])):
        assert joined.ids == [*IDS, "x"]
        assert joined.metadata["label"] == [*LABELS, 7]
        assert joined.metadata["year"] == [None] * COUNT + [1999]
        some = joined.chosen(np.array([COUNT, 1, 0]))
        assert some.metadata == {
            "label": [7, LABELS[1], None],
            "score": [None, 0.25, 0.0],
            "tags": [None, [1, None], None],
            "year": [1999, None, None],
        }


def test_ids_are_found_in_any_form() -> None:
    for found in (stored(), GIVEN):
        names = ["s55", "e\u03019", "nothing", "é18", "b\udce4"]
        assert found.find(names) == {"s55": 55, "e\u03019": 9, "é18": 18}
        assert (found.row("s1"), found.row("s0")) == (1, None)
        other = Manifest([*(f"new{n}" for n in range(30)), "s50", "é9", "s1"], ["0"] * 33)
        assert set(found.shared(other)) == {"s50", "é9", "s1"} == set(other.shared(found))


def test_a_file_that_changed_is_refused() -> None:
    content = GIVEN.content()
    with pytest.raises(StoreError, match="m cannot be read as a manifest: its footer has changed"):
        stored(content, footer_sha256="0" * 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifests, "PIECE", 11)
        longer = GIVEN.content()
    with pytest.raises(StoreError, match="a row group holds more than 10 samples"):
        stored(longer)
    place = content.index(b"label 1")
    damaged = stored(content[:place] + b"Label" + content[place + 5 :])
    assert damaged.ids == IDS
    with pytest.raises(StoreError, match="m cannot be read as a manifest: .*CRC"):
        list(damaged.metadata["label"])


def test_an_id_that_occurs_twice_is_found_by_verify(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifests, "check_ids", lambda _: None)
        twice = Manifest([*IDS[:-1], IDS[0]], GIVEN.digests)
    with pytest.raises(DatasetError, match="occurs 2 times"):
        stored(twice.content()).require_unique()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifests, "check_ids", lambda _: None)
        store = filled(tmp_path / "s.gradstore", Manifest([*IDS[:9], IDS[0]], ["0"] * 10))
    with pytest.raises(StoreError, match="occurs 2 times"):
        list(verify(store))


def test_a_store_is_read_in_pieces(tmp_path: Path) -> None:
    store = delete(grown(filled(tmp_path / "s.gradstore"), ["a", "b", "c"]), ["s3", "b"])
    names = [f"s{n}" for n in range(10) if n != 3] + ["a", "c"]
    assert isinstance(store.manifest.ids, Column)
    assert store.manifest.ids == names
    assert store.manifest.metadata["label"] == [None] * 9 + ["new"] * 2
    assert [(low, high) for _, low, high in store.spans()] == [(0, 9), (9, 11)]
    assert {report.problem for report in verify(store)} == {None}
    file = store.path / "samples" / "manifest.parquet"
    content = bytearray(file.read_bytes())
    content[content.index(b"s0", content.index(b"s0") + 1)] = ord("t")
    file.write_bytes(content)
    now: Store = open_store(store.path)
    with pytest.raises(StoreError, match=r"manifest\.parquet has changed"):
        list(verify(now))
    with pytest.raises(StoreError, match=r"manifest\.parquet cannot be read as a manifest"):
        list(now.manifest.ids)
    file.write_bytes(content[:-100])
    with pytest.raises(StoreError, match=r"manifest\.parquet cannot be read"):
        _ = open_store(store.path).manifest


def test_pieces_that_a_vacuum_removed(tmp_path: Path) -> None:
    store = filled(tmp_path / "s.gradstore")
    names = open_store(store.path).manifest
    vacuum(delete(store, ["s1"]))
    with pytest.raises(ChangedError, match="changed by another process"):
        list(names.ids)


def test_texts_that_repeat_are_kept_once(tmp_path: Path) -> None:
    file = RangedFile(filled(tmp_path / "s.gradstore").objects, "samples/manifest.parquet", 10)
    assert (file.seek(-4, 2), file.tell(), len(file.read(9)), file.read(1)) == (6, 6, 4, b"")
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(BytesIO(GIVEN.content()))
    assert repeating(metadata, ["id", "digest"]) == ["label"]
    column = stored().metadata["label"]
    assert len({id(one) for one in column[:10] if one is not None}) <= 3
