from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from gradstore import delete, vacuum
from gradstore.errors import QueryError, SearchIndexError, UnsealedError
from gradstore.store.format.manifest import Manifest
from gradstore.store.opening import open_store
from gradstore.store.reader import Store
from gradstore.store.writer import create, unseal, write_shard
from indexer import ReTrac, TracIn, build_index, index_path, open_index
from tests.support.drawn_stores import features
from tests.support.written_stores import filled, grown, manifest, rows, spec


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return filled(tmp_path / "s.gradstore")


def test_search_is_exact(store: Store) -> None:
    index = build_index(store, "retrac")
    vectors = features(store, ReTrac()).astype(np.float64)
    proponents, opponents = index.search(features(store, ReTrac(), 0, 4), 10)
    expected = vectors[:4] @ vectors.T
    for side, sign in ((proponents, 1), (opponents, -1)):
        np.testing.assert_array_equal(side.samples, np.argsort(-sign * expected, axis=1))
        np.testing.assert_allclose(
            sign * side.scores, -np.sort(-sign * expected, axis=1), rtol=1e-5, atol=1e-6
        )


def test_an_index_is_found_again(store: Store) -> None:
    built = build_index(store, "tracin")
    assert built.path == index_path(store, "tracin") == store.path.parent / "s.tracin.index"
    before = (built.path / "vectors.faiss").stat().st_mtime_ns
    again = build_index(open_store(store.path), "tracin")
    assert (built.path / "vectors.faiss").stat().st_mtime_ns == before
    queries = features(store, again.measure, 0, 2)
    for left, right in zip(built.search(queries, 3), again.search(queries, 3), strict=True):
        np.testing.assert_array_equal(left.samples, right.samples)


def test_other_etas_need_another_index(store: Store, tmp_path: Path) -> None:
    path = build_index(store, "tracin").path
    with pytest.raises(SearchIndexError, match=r"etas is \[0.5, 1.0\], but .* needs \[1.0, 1.0\]"):
        build_index(store, "tracin", path, etas=[1, 1])
    other = build_index(store, "tracin", tmp_path / "even.index", etas=[1, 1])
    assert other.spec.etas == [1, 1]


def test_an_index_of_another_measure_is_refused(store: Store) -> None:
    path = build_index(store, "tracin").path
    with pytest.raises(SearchIndexError, match=r"measure is .*tracin.*gradstore index"):
        open_index(path, store, "retrac")


def test_an_index_of_changed_samples_is_refused(store: Store) -> None:
    path = build_index(store, "tracin").path
    shutil.rmtree(store.path)
    names = manifest().ids
    changed = filled(store.path, Manifest(names, ["1"] * len(names)))
    with pytest.raises(SearchIndexError, match=r"built from 10 samples"):
        open_index(path, changed, "tracin")


def test_a_missing_index_says_how_to_build_it(store: Store) -> None:
    with pytest.raises(SearchIndexError, match=r"gradstore index --store .* --measures retrac"):
        open_index(index_path(store, "retrac"), store, "retrac")


@pytest.mark.parametrize("damage", ["json", "gone", "truncated", "other"])
def test_a_damaged_index_is_refused(store: Store, damage: str, tmp_path: Path) -> None:
    path = build_index(store, "retrac").path
    vectors = path / "vectors.faiss"
    if damage == "json":
        (path / "index.json").write_text('{"format_version": 1}')
    elif damage == "gone":
        vectors.unlink()
    elif damage == "truncated":
        vectors.write_bytes(vectors.read_bytes()[:-100])
    else:
        text = (path / "index.json").read_text()
        (path / "index.json").write_text(json.dumps(json.loads(text) | {"count": 9}))
    with pytest.raises(SearchIndexError, match=r"Remove .*retrac.index and build it again"):
        open_index(path, store, "retrac")


def test_what_stands_in_the_way_is_not_overwritten(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.mkdir()
    (path / "notes.txt").write_text("precious")
    with pytest.raises(SearchIndexError, match="not a whole index"):
        build_index(store, "retrac", path)
    assert [p.name for p in path.iterdir()] == ["notes.txt"]


def test_an_incomplete_store_is_not_indexed(tmp_path: Path) -> None:
    made = create(tmp_path / "s.gradstore", spec(), manifest())
    write_shard(made.parts[0], 0, 0, rows(0))
    with pytest.raises(UnsealedError, match="lacks 2 of 3 shards"):
        build_index(made, "retrac")
    assert not index_path(made, "retrac").exists()


def test_nonsense_queries_are_refused(store: Store) -> None:
    index = build_index(store, "retrac")
    queries = features(store, ReTrac(), 0, 2)
    for k in (0, 11):
        with pytest.raises(QueryError, match=rf"k is {k}, but there are 10 samples"):
            index.search(queries, k)
    with pytest.raises(QueryError, match=r"shape \(2, 5\).*length 12"):
        index.search(queries[:, :5], 1)
    with pytest.raises(QueryError, match="not finite"):
        index.search(np.full((1, 12), np.nan, np.float32), 1)


def test_an_index_notices_and_is_brought_up_to_date(store: Store, tmp_path: Path) -> None:
    index = build_index(store, "tracin")
    queries = features(store, TracIn(), 0, 3)
    less = delete(store, ["s0", "s5"])
    with pytest.raises(SearchIndexError, match=r"changed since index .* was opened"):
        index.search(queries, 10)
    with pytest.raises(SearchIndexError, match=r"built from 10 samples; .* has 8 now"):
        open_index(index.path, less, "tracin")
    now = grown(less, ["a", "s0"])  # a returning id is a new sample
    updated = build_index(now, "tracin")
    assert updated.path == index.path
    scratch = build_index(now, "tracin", tmp_path / "scratch.index")
    for k in (1, 10):
        for found, expected in zip(
            updated.search(queries, k), scratch.search(queries, k), strict=True
        ):
            np.testing.assert_array_equal(found.samples, expected.samples)
            np.testing.assert_array_equal(found.scores, expected.scores)
    same = scratch.spec.sha256
    assert open_index(index.path, now, "tracin").spec.sha256 == same
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    clean = vacuum(now)  # different parts, same samples
    assert build_index(clean, "tracin").spec.sha256 == same


def test_only_what_is_new_is_read(store: Store) -> None:
    build_index(store, "retrac")
    now = grown(store, ["a", "b"])
    chunk = store.path / "checkpoints/0/direction/c.0.0.0"
    hidden = chunk.rename(store.path / "hidden")
    updated = build_index(now, "retrac")
    assert updated.spec.count == 12
    assert updated.spec.measured.samples == 10  # keeps the measurement of an equally good index
    hidden.rename(chunk)
    assert build_index(grown(now, ["c"]), "retrac").spec.measured.samples == 13
    now = open_store(store.path)
    new = features(now, ReTrac(), 10, 13)
    proponents, _ = build_index(now, "retrac").search(new, 13)
    for query in range(3):
        own = proponents.samples[query].tolist().index(10 + query)
        expected = float(new[query] @ new[query])
        assert proponents.scores[query, own] == pytest.approx(expected)


def test_an_index_without_its_table_of_samples_is_not_touched(store: Store) -> None:
    index = build_index(store, "retrac")
    (index.path / "samples.parquet").write_bytes(b"nonsense")
    with pytest.raises(SearchIndexError, match="built from 10 samples"):
        build_index(delete(store, ["s1"]), "retrac")


def test_samples_that_were_skipped_are_added_when_they_are_sealed(tmp_path: Path) -> None:
    made = filled(tmp_path / "s.gradstore")
    unseal(made.parts[0], 1, 1)
    partial = open_store(made.path, skip_unsealed=True)
    assert build_index(partial, "retrac").spec.count == 6
    write_shard(made.parts[0], 1, 1, rows(1, 1))
    whole = build_index(open_store(made.path), "retrac")
    expected = build_index(open_store(made.path), "retrac", tmp_path / "scratch.index")
    queries = features(made, ReTrac(), 0, 10)
    for found, wanted in zip(whole.search(queries, 10), expected.search(queries, 10), strict=True):
        np.testing.assert_array_equal(found.samples, wanted.samples)


def test_an_index_is_searched_as_it_was_measured(tmp_path: Path) -> None:
    """An older index, which does not record the number of bits, uses four."""
    store = filled(tmp_path / "s.gradstore")
    made = build_index(store, "retrac")
    file = made.path / "index.json"
    described = json.loads(file.read_text())
    assert described["measured"].pop("query_bits") == made._stage.query_bits == 2
    file.write_text(json.dumps(described))
    assert open_index(made.path, store, "retrac")._stage.query_bits == 4
