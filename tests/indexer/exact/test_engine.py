"""The exact engine against the definition, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest
import torch

from gradstore import delete
from gradstore.errors import QueryError
from gradstore.store.format.layout import Layout
from gradstore.store.format.manifest import Manifest
from gradstore.store.format.rows import Rows
from gradstore.store.format.spec import LayoutSpec, PartSpec
from gradstore.store.writer import create, write_shard
from indexer import ExactEngine, Features, measure_of, product
from indexer.exact.highest import HighestAndLowest
from indexer.exact.rescoring import rescored
from indexer.product import Multiplier, Way
from tests.support.drawn_stores import random_store
from tests.support.written_stores import spec

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from gradstore.store.reader import Store

ETAS = (0.5, 1.0)


def influence(
    train: Store, queries: Store, name: str, *, matched: bool = False
) -> NDArray[np.float64]:
    """TracIn or ReTrac by their definitions, `[queries, samples]`."""
    total = np.zeros((queries.samples, train.samples))
    for k, eta in enumerate(ETAS):
        sides = []
        for store in (queries, train):
            rows = store.rows(k)
            gradient = rows.direction.astype(np.float64)
            if name == "tracin":
                gradient = gradient * rows.norm[:, :, None]
            sides.append(gradient)
        if matched:
            total += eta * np.einsum("qsd,nsd->qn", *sides) / train.slots
        else:
            total += eta * sides[0].mean(axis=1) @ sides[1].mean(axis=1).T
    return total


def require_ranking(found: object, expected: NDArray[np.float64], sign: int) -> None:
    rows, scores = found.samples, found.scores  # type: ignore[attr-defined]
    wanted = -np.sort(-sign * expected, axis=1)[:, : rows.shape[1]]
    np.testing.assert_allclose(sign * scores, wanted, rtol=1e-4, atol=1e-5)
    own = np.take_along_axis(expected, rows, 1)
    np.testing.assert_allclose(scores, own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["tracin", "retrac"])
@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_both_ends_are_exact(tmp_path: Path, name: str, slots: int, dtype: str) -> None:
    train = random_store(tmp_path / "t.gradstore", slots=slots, dtype=dtype)
    queries = random_store(tmp_path / "q.gradstore", 5, slots=4, seed=1)
    features = Features.of(train, measure_of(name))
    asked = features.range(queries)
    proponents, opponents = ExactEngine(train, features).search(asked, 12)
    expected = influence(train, queries, name)
    require_ranking(proponents, expected, 1)
    require_ranking(opponents, expected, -1)


@pytest.mark.parametrize("count", [2, 5])  # up to two use float16 products
def test_all_scores(tmp_path: Path, count: int) -> None:
    train = random_store(tmp_path / "t.gradstore")
    queries = random_store(tmp_path / "q.gradstore", count, slots=4, seed=1)
    features = Features.of(train, measure_of("tracin"))
    asked = features.range(queries)
    blocks = list(ExactEngine(train, features).scores(asked))
    assert np.concatenate([samples for samples, _ in blocks]).tolist() == list(range(300))
    expected = influence(train, queries, "tracin")
    lengths = [
        np.linalg.norm(features.range(store).astype(np.float64), axis=1)
        for store in (queries, train)
    ]
    scale = np.outer(*lengths) / 8  # the scores of unrelated gradients at dim 64
    error = np.abs(np.concatenate([scores for _, scores in blocks], axis=1) - expected) / scale
    assert np.sqrt(np.mean(error**2)) < 1e-6


@pytest.mark.parametrize("way", get_args(Way))
@pytest.mark.parametrize("stored", ["float16", "float32"])
@pytest.mark.parametrize("queries", [1, 2, 5, 300])
def test_every_way_to_multiply_is_near_the_product_in_float64(
    way: Way, stored: str, queries: int
) -> None:
    """All ways, not only this machine's: other machines use the others."""
    draws = np.random.default_rng(queries)
    asked = 100 * draws.standard_normal((queries, 48), np.float32)
    rows = draws.standard_normal((70, 48)).astype(stored)
    multiplier = Multiplier(asked, stored, way=way)
    out = multiplier.empty(len(rows))
    multiplier.multiply(rows[:33], out[:33])
    multiplier.multiply(rows[33:], out[33:])
    found = out.to(torch.float64).numpy() * float(multiplier.largest)
    exact = rows.astype(np.float64) @ asked.T.astype(np.float64)
    error = np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2))
    assert error < (1e-6 if way == "float32" else 6e-3)
    assert (way == "float32") != multiplier.rounds


@pytest.mark.parametrize("way", get_args(Way))
@pytest.mark.parametrize("slots", [1, 3])
def test_search_is_exact_whichever_way_is_fastest(
    tmp_path: Path, way: Way, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "fastest_way", lambda *_: way)
    train = random_store(tmp_path / "t.gradstore", slots=slots)
    queries = random_store(tmp_path / "q.gradstore", 5, slots=4, seed=1)
    features = Features.of(train, measure_of("tracin"))
    sides = ExactEngine(train, features).search(features.range(queries), 12)
    expected = influence(train, queries, "tracin")
    for sign, side in zip((1, -1), sides, strict=True):
        require_ranking(side, expected, sign)


def test_slots_are_matched(tmp_path: Path) -> None:
    train = random_store(tmp_path / "t.gradstore", slots=4, even=True)
    queries = random_store(tmp_path / "q.gradstore", 5, slots=4, seed=1, even=True)
    other = random_store(tmp_path / "o.gradstore", 5, slots=3, seed=1, even=True)
    random = random_store(tmp_path / "r.gradstore", 5, slots=4, seed=1)
    features = Features.of(train, measure_of("tracin"), matched=True)
    features.require_matching(train, queries)
    proponents, _ = ExactEngine(train, features).search(features.range(queries), 12)
    require_ranking(proponents, influence(train, queries, "tracin", matched=True), 1)
    with pytest.raises(QueryError, match="has 3 timesteps per sample and the training store 4"):
        features.range(other)
    for store in (other, random):
        with pytest.raises(QueryError, match="cannot be matched"):
            features.require_matching(train, store)


def test_a_filter_searches_within(tmp_path: Path) -> None:
    train = random_store(tmp_path / "t.gradstore")
    queries = random_store(tmp_path / "q.gradstore", 5, seed=1)
    features = Features.of(train, measure_of("retrac"))
    keep = np.array([3, 7, 120, 127, 128, 299])
    proponents, _ = ExactEngine(train, features).search(features.range(queries), 4, keep=keep)
    expected = influence(train, queries, "retrac")[:, keep]
    np.testing.assert_array_equal(proponents.samples, keep[np.argsort(-expected, axis=1)[:, :4]])
    with pytest.raises(QueryError, match="there are 6 samples"):
        ExactEngine(train, features).search(features.range(queries), 7, keep=keep)
    with pytest.raises(QueryError, match="no sample of .* is left"):
        ExactEngine(train, features).search(features.range(queries), 1, keep=keep[:0])


def test_a_checkpoint_of_no_weight_is_not_read(tmp_path: Path) -> None:
    train = random_store(tmp_path / "t.gradstore")
    features = Features.of(train, measure_of("retrac"), etas=[0, 1])
    for file in (train.path / "checkpoints/0/direction").iterdir():
        file.unlink()
    proponents, _ = ExactEngine(train, features).search(features.range(train, 0, 2), 1)
    np.testing.assert_array_equal(proponents.samples[:, 0], [0, 1])


def test_deleted_samples_are_not_found(tmp_path: Path) -> None:
    train = random_store(tmp_path / "t.gradstore")
    features = Features.of(train, measure_of("retrac"))
    asked = features.range(train, 5, 6)
    after = delete(train, ["s5"])
    proponents, _ = ExactEngine(after, features).search(asked, 299)
    assert sorted(proponents.samples[0]) == list(range(299))
    assert proponents.scores.max() < 1 < float((asked @ asked.T)[0, 0])


def constant_store(path: Path, directions: NDArray[np.float64]) -> Store:
    count, dim = directions.shape
    layout = Layout(
        samples=count, slots=1, dim=dim, dtype="float16", chunk_samples=2, shard_samples=128
    )
    store = create(
        path,
        spec(parts=[PartSpec(layout=LayoutSpec.of(layout))]),
        Manifest([f"s{n}" for n in range(count)], ["0"] * count),
    )
    for checkpoint in range(2):
        for shard in range(layout.shards):
            low, high = layout.span(shard)
            ones = np.ones((high - low, 1), np.float32)
            rows = Rows(
                directions[low:high, None].astype(np.float16), ones, ones, ones.astype(np.int32)
            )
            write_shard(store.parts[0], checkpoint, shard, rows)
    return store


def test_ties_come_in_the_order_of_the_store(tmp_path: Path) -> None:
    one = np.random.default_rng(0).standard_normal((1, 64)) / 8
    train = constant_store(tmp_path / "t.gradstore", np.repeat(one, 400, axis=0))
    features = Features.of(train, measure_of("retrac"))
    for side in ExactEngine(train, features).search(features.range(train, 0, 2), 5):
        np.testing.assert_array_equal(side.samples, [[0, 1, 2, 3, 4]] * 2)


@pytest.mark.parametrize("way", get_args(Way))
def test_what_two_bytes_cannot_tell_apart_is_told_apart(
    tmp_path: Path, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples that differ by less than bfloat16 resolves, the best of them last."""
    monkeypatch.setattr(product, "fastest_way", lambda *_: way)
    generator = np.random.default_rng(0)
    base = generator.standard_normal(512) / np.sqrt(512)
    steps = np.linspace(0, 1e-2, 1000)[:, None] * base
    train = constant_store(tmp_path / "t.gradstore", base + steps)
    features = Features.of(train, measure_of("retrac"))
    asked = np.concatenate([base, base])[None].astype(np.float32)
    proponents, opponents = ExactEngine(train, features).search(asked, 20)
    expected = asked.astype(np.float64) @ features.range(train).T.astype(np.float64)
    require_ranking(proponents, expected, 1)
    require_ranking(opponents, expected, -1)


@pytest.mark.parametrize("way", get_args(Way))
def test_the_best_may_be_far_down_among_rough_scores(
    tmp_path: Path, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty samples that bfloat16 cannot tell apart, the best last, and nothing else near."""
    monkeypatch.setattr(product, "fastest_way", lambda *_: way)
    base = np.random.default_rng(0).standard_normal(64) / 8
    near = base * (1 + np.linspace(0, 1e-3, 20))[:, None]
    far = np.random.default_rng(1).standard_normal((200, 64)) / 80
    train = constant_store(tmp_path / "t.gradstore", np.concatenate([near, far]))
    features = Features.of(train, measure_of("retrac"))
    asked = np.concatenate([base, base])[None].repeat(3, axis=0).astype(np.float32)
    expected = asked.astype(np.float64) @ features.range(train).T.astype(np.float64)
    for k in (1, 3):
        proponents, opponents = ExactEngine(train, features).search(asked, k)
        require_ranking(proponents, expected, 1)
        require_ranking(opponents, expected, -1)


def test_zero_gradients_neither_push_nor_break(tmp_path: Path) -> None:
    directions = np.random.default_rng(0).standard_normal((10, 64)) / 8
    directions[3] = 0
    train = constant_store(tmp_path / "t.gradstore", directions)
    features = Features.of(train, measure_of("tracin"))
    proponents, opponents = ExactEngine(train, features).search(features.range(train, 3, 4), 10)
    assert not proponents.scores.any()
    np.testing.assert_array_equal(proponents.samples[0], range(10))
    np.testing.assert_array_equal(opponents.samples[0], range(10))


def test_candidates_are_scored_exactly(tmp_path: Path) -> None:
    train = random_store(tmp_path / "t.gradstore", slots=2)
    queries = random_store(tmp_path / "q.gradstore", 5, seed=1)
    features = Features.of(train, measure_of("tracin"))
    candidates = np.random.default_rng(0).integers(0, 300, (5, 40))
    found = rescored(train, features, features.range(queries), candidates)
    expected = np.take_along_axis(influence(train, queries, "tracin"), candidates, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 40])
@pytest.mark.parametrize("slots", [1, 3])
def test_several_threads_find_what_one_finds(tmp_path: Path, count: int, slots: int) -> None:
    """Blocks arrive in any order and reuse memory; ties keep their order."""
    train = random_store(tmp_path / "t.gradstore", 2000, slots=slots)
    features = Features.of(train, measure_of("tracin"))
    asked = np.resize(features.range(train, 0, 40), (count, features.dim(train)))
    keep = np.arange(3, 2000, 3)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            engine = ExactEngine(train, features)
            sides = [*engine.search(asked, 9), *engine.search(asked, 9, keep=keep)]
            blocks = list(engine.scores(asked))
            rows, scores = zip(*blocks, strict=True)
            np.testing.assert_array_equal(np.concatenate(rows), np.arange(2000))
            found.append((sides, np.concatenate(scores, axis=1)))
    finally:
        torch.set_num_threads(before)
    (one, scores_of_one), (four, scores_of_four) = found
    for side, other in zip(one, four, strict=True):
        np.testing.assert_array_equal(side.samples, other.samples)
        np.testing.assert_array_equal(side.scores, other.scores)
    np.testing.assert_allclose(scores_of_one, scores_of_four, rtol=1e-5, atol=1e-6)
    expected = asked.astype(np.float64) @ features.range(train).astype(np.float64).T
    np.testing.assert_allclose(scores_of_four, expected, rtol=1e-4, atol=1e-4)


def test_the_highest_of_a_stream_are_those_of_all() -> None:
    """With many equal scores, in any block."""
    draws = np.random.default_rng(0)
    for blocks, count in ((1, 5), (7, 5), (7, 40)):
        scores = draws.integers(-3, 4, (6, 7 * 30)).astype(np.float32)
        scores[2] = 0
        ends = HighestAndLowest(6, count)
        for samples in np.split(np.arange(scores.shape[1]), blocks):
            ends.add(samples, scores[:, samples])
        for sign, side in zip((1, -1), ends.rankings, strict=True):
            order = np.argsort(-sign * scores, axis=1, kind="stable")[:, :count]
            np.testing.assert_array_equal(side.samples, order)
            np.testing.assert_array_equal(side.scores, sign * np.take_along_axis(scores, order, 1))
