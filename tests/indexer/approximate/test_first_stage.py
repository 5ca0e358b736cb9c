"""Candidates: the codes equal FAISS's, and the recall is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
import pytest

from gradstore import delete
from gradstore.errors import ConfigError, QueryError, SearchIndexError
from indexer import (
    ExactEngine,
    Features,
    SearchIndex,
    build_index,
    index_path,
    measure_of,
    open_index,
)
from indexer.approximate import first_stage
from indexer.approximate.build import estimated_nbytes
from indexer.approximate.codes import encode
from indexer.approximate.factory import factory_string
from indexer.approximate.first_stage import FirstStage
from query.engines import engine_of
from tests.support.drawn_stores import random_store

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("dim", [8, 64, 100, 1024])
def test_codes_are_those_of_faiss(dim: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((50, dim)).astype(np.float32)
    vectors[3], vectors[4, :5] = 0, 0
    index: Any = faiss.IndexRaBitQ(dim, faiss.METRIC_INNER_PRODUCT)
    index.train(np.zeros((1, dim), np.float32))
    index.add(vectors)
    own, theirs = encode(vectors), faiss.vector_to_array(index.codes).reshape(50, -1)
    assert own.shape == theirs.shape
    np.testing.assert_array_equal(own[:, :-8], theirs[:, :-8])
    np.testing.assert_allclose(
        own[:, -8:].copy().view(np.float32), theirs[:, -8:].copy().view(np.float32), rtol=1e-5
    )


def test_what_is_found_is_exact_and_its_recall_is_true(tmp_path: Path) -> None:
    """With enough samples that candidates are a small share."""
    train = random_store(tmp_path / "t.gradstore", 4000, dim=256)
    queries = random_store(tmp_path / "q.gradstore", 20, slots=4, dim=256, seed=1)
    index = build_index(train, "tracin", queries=queries)
    measured = index.spec.measured
    assert measured.candidates < 2000
    assert measured.origin == str(queries.path)
    assert measured.queries == 20
    features = index.features
    asked = features.range(queries)
    found, opponents = index.approximate(asked, 10)
    exact, lowest = ExactEngine(train, features).search(asked, 10)
    shares = [np.isin(e, f).mean() for e, f in zip(exact.samples, found.samples, strict=True)]
    assert np.mean(shares) == pytest.approx(measured.recall_at_10, abs=1e-9)
    assert np.mean(shares) >= 0.99
    low = [np.isin(e, f).mean() for e, f in zip(lowest.samples, opponents.samples, strict=True)]
    assert np.mean(low) >= 0.97
    scores = asked.astype(np.float64) @ features.range(train).T.astype(np.float64)
    np.testing.assert_allclose(
        found.scores, np.take_along_axis(scores, found.samples, 1), rtol=1e-4, atol=1e-5
    )


def test_an_index_that_finds_little_says_so(tmp_path: Path) -> None:
    train = random_store(tmp_path / "t.gradstore", 4000, dim=256)
    index = build_index(train, "retrac", factory="IVF64,Flat")  # searches one list of 64
    assert index.spec.measured.recall_at_10 < 0.6
    assert index.spec.measured.origin == "samples"
    with pytest.raises(SearchIndexError, match="found fewer than 1000 samples"):
        index.approximate(index.features.range(train, 0, 3), 1000)


@pytest.mark.parametrize("factory", ["Flat", "SQfp16", "IVF4,RaBitQ", "HNSW8,Flat"])
def test_other_indexes_of_faiss(tmp_path: Path, factory: str) -> None:
    train = random_store(tmp_path / "t.gradstore")
    index = build_index(train, "retrac", factory=factory)
    assert open_index(index.path, train, "retrac").spec.factory == factory
    found, _ = index.search(index.features.range(train, 0, 3), 1)
    np.testing.assert_array_equal(found.samples[:, 0], [0, 1, 2])


def test_no_index_of_faiss(tmp_path: Path) -> None:
    train = random_store(tmp_path / "t.gradstore", 10)
    with pytest.raises(ConfigError, match="FAISS knows no index 'Nonsense'"):
        build_index(train, "retrac", factory="Nonsense")


@pytest.mark.parametrize("factory", ["IVF4096,Flat", "PQ4x8", "IVF64,PQ2", "caf\udce9"])
def test_what_cannot_be_trained_is_told(tmp_path: Path, factory: str) -> None:
    store = random_store(tmp_path / "t.gradstore", 20)
    with pytest.raises(ConfigError, match="FAISS"):
        build_index(store, "tracin", factory=factory)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["t.gradstore"]


def test_it_is_trained_on_no_more_samples_than_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_stage, "TRAINED_ON", 3)
    store = random_store(tmp_path / "t.gradstore", 300)
    with pytest.raises(ConfigError, match="on 3 samples"):
        build_index(store, "tracin", factory="IVF4,Flat")


@pytest.mark.parametrize("factory", ["NSG8,Flat", "IDMap,Flat"])
def test_what_cannot_be_filled_is_told(tmp_path: Path, factory: str) -> None:
    store = random_store(tmp_path / "t.gradstore", 300)
    with pytest.raises(ConfigError, match="cannot be filled"):
        build_index(store, "tracin", factory=factory)
    assert [file.name for file in tmp_path.iterdir()] == ["t.gradstore"]


@pytest.mark.parametrize("factory", ["RaBitQ", "SQfp16"])
def test_a_filter_is_inside_the_search(tmp_path: Path, factory: str) -> None:
    train = random_store(tmp_path / "t.gradstore", 2000)
    index = build_index(train, "retrac", factory=factory)
    asked = index.features.range(train, 0, 3)
    keep = np.arange(5, 2000, 7)
    exact, _ = ExactEngine(train, index.features).search(asked, 5, keep=keep)
    found, _ = index.search(asked, 5, keep=keep)
    assert np.isin(found.samples, keep).all()
    assert (
        np.mean([np.isin(e, f).mean() for e, f in zip(exact.samples, found.samples, strict=True)])
        > 0.9
    )
    few, _ = index.search(asked, 3, keep=np.array([1, 9, 700]))
    np.testing.assert_array_equal(np.sort(few.samples, axis=1), [[1, 9, 700]] * 3)
    with pytest.raises(QueryError, match="there are 3 samples"):
        index.search(asked, 4, keep=np.array([1, 9, 700]))


def test_checkpoints_are_folded(tmp_path: Path) -> None:
    train = random_store(tmp_path / "t.gradstore", dim=64)
    features = Features.of(train, measure_of("retrac"))
    stage = FirstStage.empty("Flat", train, features)
    assert stage.dim == 64
    for _, tiles in features.each(train, lambda _, t: [stage.encoded(parts) for _, parts in t]):
        for vectors in tiles:
            stage.add(vectors)
    assert len(stage) == 300
    whole = features.range(train)
    folded = whole[:, :64] + whole[:, 64:]
    expected = np.argsort(-(folded[:2] @ folded.T), axis=1)[:, :5]
    np.testing.assert_array_equal(stage.search(whole[:2], 5), expected)


def test_matched_slots_are_indexed(tmp_path: Path) -> None:
    train = random_store(tmp_path / "t.gradstore", slots=3, even=True)
    index = build_index(train, "retrac", tmp_path / "m.index", matched=True)
    assert index.spec.dim == 3 * 64
    asked = index.features.range(train, 0, 3)
    exact, _ = ExactEngine(train, index.features).search(asked, 5)
    found, _ = index.search(asked, 5)
    np.testing.assert_array_equal(found.samples, exact.samples)


FACTORIES = ["rabitq", "fp16", "hnsw", "ivf", "RaBitQ4", "IVF16,Flat", "PQ8x4"]


@pytest.mark.parametrize("factory", FACTORIES)
def test_bytes_are_told_before_they_are_taken(tmp_path: Path, factory: str) -> None:
    train = random_store(tmp_path / "t.gradstore", 2000, dim=128)
    told = estimated_nbytes(train, "retrac", factory=factory)
    assert not index_path(train, "retrac").exists()
    index = build_index(train, "retrac", factory=factory)
    assert told == pytest.approx(index.nbytes, rel=0.03)
    # Afterwards the existing index is reported, updated and opened.
    assert estimated_nbytes(train, "retrac") == told
    assert build_index(train, "retrac").spec == index.spec
    found, _ = index.approximate(index.features.range(train, 0, 9), 1)
    assert (found.samples[:, 0] == range(9)).mean() > 0.9


@pytest.mark.parametrize("factory", ["RaBitQ", "fp16", "hnsw", "ivf", "IVF8,Flat", "RaBitQ4"])
def test_every_name_searches_within_a_filter(tmp_path: Path, factory: str) -> None:
    train = random_store(tmp_path / "t.gradstore", 2000)
    index = build_index(train, "retrac", factory=factory)
    keep = np.arange(3, 2000, 4)
    found, opponents = index.approximate(index.features.range(train, 3, 4), 5, keep=keep)
    assert found.samples[0, 0] == 3
    assert np.isin([found.samples, opponents.samples], keep).all()


def test_an_index_that_has_no_filter_says_so(tmp_path: Path) -> None:
    train = random_store(tmp_path / "t.gradstore")
    index = build_index(train, "retrac", factory="PQ8x4")
    with pytest.raises(SearchIndexError, match="IndexPQ of FAISS cannot search among some"):
        index.approximate(index.features.range(train, 0, 1), 5, keep=np.arange(9))


@pytest.mark.parametrize(
    ("samples", "expected"), [(10, 1), (1000, 16), (10_000, 256), (10_000_000, 256)]
)
def test_lists_follow_the_size(samples: int, expected: int) -> None:
    assert factory_string("ivf", samples) == f"IVF{expected},RaBitQ"
    assert factory_string("IVF7,Flat", samples) == "IVF7,Flat"


def test_other_weights_and_matched_slots_have_indexes_of_their_own(tmp_path: Path) -> None:
    train = random_store(tmp_path / "t.gradstore", slots=2, even=True)
    plain = build_index(train, "retrac")
    last = build_index(train, "retrac", etas=[0, 1])
    matched = build_index(train, "retrac", matched=True)
    assert len({one.path for one in (plain, last, matched)}) == 3
    assert index_path(train, "retrac", etas=train.etas) == plain.path
    for index, given in ((last, {"etas": [0.0, 1.0]}), (matched, {"matched": True})):
        engine = engine_of(train, "retrac", **given)
        assert isinstance(engine, SearchIndex)
        assert engine.path == index.path
        exact, _ = ExactEngine(train, index.features).search(index.features.range(train, 0, 3), 5)
        found, _ = engine.approximate(index.features.range(train, 0, 3), 5)
        np.testing.assert_array_equal(found.samples, exact.samples)
    later = delete(train, ["s1"])
    for index, flags in ((last, "--etas 0,1"), (matched, "--matched")):
        with pytest.raises(SearchIndexError, match=f"gradstore index .*--measures retrac {flags}"):
            open_index(
                index.path, later, "retrac", etas=index.spec.etas, matched=index.spec.matched
            )
