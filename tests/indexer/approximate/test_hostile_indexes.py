"""Indexes from strangers: no more memory than their stores justify, nothing outside."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from gradstore.errors import ConfigError, SearchIndexError
from gradstore.store.reader import Store
from indexer import ExactEngine, build_index, open_index
from indexer.approximate.factory import most_bytes
from indexer.artifact import file_hash
from indexer.measures.trak import Trak
from indexer.studies.influence_map import influence_map, map_path
from indexer.trak_kernel import build_kernel, fitted_by_kernel
from tests.support.drawn_stores import random_store
from tests.support.memory import bounded

FEW = 20


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return random_store(tmp_path / "s.gradstore", FEW)


def forge(index: Path, content: bytes | None = None, **said: Any) -> None:
    """Change an index as a stranger who knows all digests can."""
    if content is not None:
        (index / "vectors.faiss").write_bytes(content)
    spec = json.loads((index / "index.json").read_text())
    spec |= {"sha256": file_hash(index / "vectors.faiss"), **said}
    (index / "index.json").write_text(json.dumps(spec))


@pytest.mark.parametrize("factory", ["RaBitQ", "Flat", "HNSW32,SQ8"])
def test_a_file_is_no_longer_than_its_samples_justify(store: Store, factory: str) -> None:
    path = build_index(store, "retrac", factory=factory).path
    os.truncate(path / "vectors.faiss", most_bytes(factory, store.dim, FEW) + 1)
    forge(path)
    with pytest.raises(SearchIndexError, match="make sense"):
        open_index(path, store, "retrac")
    assert most_bytes(factory, store.dim, FEW) < 2 << 20


def test_the_number_of_vectors_is_the_store_s(store: Store) -> None:
    path = build_index(store, "retrac").path
    os.truncate(path / "vectors.faiss", 1 << 28)
    forge(path, count=10**9)
    with bounded(64 << 20), pytest.raises(SearchIndexError, match="of 20 samples"):
        open_index(path, store, "retrac")


def test_many_lists_take_no_memory(store: Store) -> None:
    """FAISS makes as many lists as an inverted file claims, before it reads any."""
    path = build_index(store, "retrac", factory="Flat").path
    lists = faiss.index_factory(store.dim, "IVF13,Flat", faiss.METRIC_INNER_PRODUCT)
    vectors = np.random.default_rng(0).random((FEW, store.dim), np.float32)
    lists.train(vectors)
    lists.add(vectors)
    content = bytearray(faiss.serialize_index(lists))
    place = content.index(b"ilar") + 4
    assert content[place : place + 8] == (13).to_bytes(8, "little")
    content[place : place + 8] = (2**24).to_bytes(8, "little")
    forge(path, bytes(content), factory="IVF13,Flat")
    with bounded(256 << 20), pytest.raises(SearchIndexError, match="cannot be read"):
        open_index(path, store, "retrac")


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    """A rotation of long vectors is larger than all else of a small store."""
    store = random_store(tmp_path / "s.gradstore", FEW, dim=1024)
    with pytest.raises(ConfigError, match="may be read again"):
        build_index(store, "retrac", factory="RR1024,Flat")
    assert not list(tmp_path.glob("*.index"))


def test_no_file_of_an_artifact_is_a_link(store: Store, tmp_path: Path) -> None:
    index, kernel = build_index(store, "retrac").path, build_kernel(store)
    engine = ExactEngine(store, "retrac")
    influence_map(engine)
    opened: dict[Path, Callable[[], object]] = {
        index: lambda: open_index(index, store, "retrac"),
        kernel: lambda: fitted_by_kernel(Trak(), store),
        map_path(store): lambda: influence_map(engine),
    }
    names = {".index": "vectors.faiss", ".kernel": "0.npy", ".map": "points.npy"}
    for file in (
        path / name for path in opened for name in (names[path.suffix], f"{path.suffix[1:]}.json")
    ):
        outside = tmp_path / "outside" / f"{file.parent.suffix[1:]}-{file.name}"
        outside.parent.mkdir(exist_ok=True)
        file.rename(outside)
        file.symlink_to(outside)
        with pytest.raises(SearchIndexError, match=str(file.parent)):
            opened[file.parent]()
        file.unlink()
        outside.rename(file)


def test_a_link_to_an_artifact_elsewhere_is_replaced_and_what_it_leads_to_stays(
    store: Store, tmp_path: Path
) -> None:
    path = build_index(store, "retrac").path
    elsewhere = path.rename(tmp_path / "elsewhere")
    path.symlink_to(elsewhere)
    forge(elsewhere, samples="0" * 32)  # out of date
    build_index(store, "retrac")
    assert not path.is_symlink()
    assert (elsewhere / "vectors.faiss").exists()
    assert {one.name for one in tmp_path.glob(".*")} == set()
