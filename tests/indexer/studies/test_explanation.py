"""Explained scores: parts sum to the score, and its error matches real projections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from gradstore.collect import ProjectorSpec
from gradstore.collect.projectors import from_spec
from gradstore.errors import QueryError
from gradstore.store.format.fingerprint import fingerprint
from gradstore.store.format.layout import Layout
from gradstore.store.format.manifest import Manifest
from gradstore.store.format.rows import Rows
from gradstore.store.format.spec import LayoutSpec, PartSpec
from gradstore.store.writer import create, write_shard
from indexer import ExactEngine, Features, measure_of
from indexer.studies.breakdown import breakdown
from indexer.studies.explanation import explain
from indexer.studies.rollup import rollup
from indexer.studies.self_influence import self_influence
from tests.support.drawn_stores import random_store
from tests.support.written_stores import IDENTITY, spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from gradstore.store.reader import Store

IDS: dict[str, Any] = {"projector": {"name": "sjlt"}}


def stored(path: Path, directions: NDArray[np.float64], **identity: Any) -> Store:
    """A store of `[checkpoints, samples, slots, dim]`."""
    _, count, slots, dim = directions.shape
    layout = Layout(
        samples=count, slots=slots, dim=dim, dtype="float32", chunk_samples=2, shard_samples=128
    )
    whole = IDENTITY | identity
    store = create(
        path,
        spec(
            parts=[PartSpec(layout=LayoutSpec.of(layout))],
            identity=whole,
            fingerprint=fingerprint(whole),
        ),
        Manifest([f"s{n}" for n in range(count)], ["0"] * count),
    )
    for checkpoint, own in enumerate(directions):
        for shard in range(layout.shards):
            low, high = layout.span(shard)
            ones = np.ones((high - low, slots), np.float32)
            rows = Rows(own[low:high].astype(np.float32), ones, ones, ones.astype(np.int32))
            write_shard(store.parts[0], checkpoint, shard, rows)
    return store


DIM = 128


def dense(seed: int) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """A dense sign projection of `[checkpoints, rows, parameters]`, made here."""

    def project(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        generator = np.random.default_rng(seed + 1)
        signs = generator.choice([-1.0, 1.0], (len(rows), rows.shape[2], DIM)) / np.sqrt(DIM)
        return np.asarray(rows @ signs)

    return project


def collected(name: str) -> Callable[[int], Callable[..., NDArray[np.float64]]]:
    """The projection of `collect`."""

    def of(seed: int) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
        projector = from_spec(
            ProjectorSpec.model_validate({"projector": name, "proj_dim": DIM, "proj_seed": seed})
        )

        def project(rows: NDArray[np.float64]) -> NDArray[np.float64]:
            found = []
            for checkpoint, own in enumerate(torch.from_numpy(rows.astype(np.float32))):
                projection = projector.at(checkpoint, own.shape[1], torch.device("cpu"), 2**28)
                buffer = torch.zeros(len(own), projection.width, dtype=projection.dtype)
                projection.add(buffer, 0, own)
                found.append(projection.finish(buffer).double().numpy())
            return np.stack(found)

        return project

    return of


@pytest.mark.parametrize("matched", [False, True])
@pytest.mark.parametrize("projected", [dense, collected("sjlt"), collected("trak")])
def test_the_error_is_that_of_many_projections(
    tmp_path: Path, projected: Callable[[int], Any], *, matched: bool
) -> None:
    """Over a hundred projections of the same gradients, scores spread as the error predicts."""
    generator = np.random.default_rng(0)
    full, slots, seeds = 3000, 3, 100
    train = generator.standard_normal((2, 4, slots, full))
    queries = generator.standard_normal((2, 1, slots, full))
    # Slots of a sample are similar, and some samples equal or resemble the query.
    train += generator.standard_normal((2, 4, 1, full))
    queries += generator.standard_normal((2, 1, 1, full))
    train[:, 0] = queries[:, 0]
    train[:, 1] += queries[:, 0]
    both = np.concatenate([train, queries], axis=1)
    both /= np.linalg.norm(both, axis=3, keepdims=True)
    rows = [
        projected(seed)(both.reshape(2, 5 * slots, full)).reshape(2, 5, slots, DIM)
        for seed in range(seeds)
    ]
    # One store holds the samples of all projections, each with its own query.
    store = stored(tmp_path / "t.gradstore", np.concatenate([one[:, :4] for one in rows], 1), **IDS)
    asked = stored(tmp_path / "q.gradstore", np.concatenate([one[:, 4:] for one in rows], 1), **IDS)
    features = Features.of(store, measure_of("retrac"), matched=matched)
    found = explain(store, features, features.range(asked), np.arange(4 * seeds).reshape(seeds, 4))
    scores, errors, zs = found.parts.sum(axis=2), found.projection_error, found.z
    spread, told = np.std(scores, axis=0), np.mean(errors, axis=0)
    np.testing.assert_allclose(told, spread, rtol=0.25)  # from a hundred: ± 7% each
    assert np.std(zs[:, 2:]) == pytest.approx(1, abs=0.2)
    assert np.mean(zs[:, :2], axis=0).min() > 4


@pytest.mark.parametrize("slots", [1, 3])
def test_parts_sum_to_the_score(tmp_path: Path, slots: int) -> None:
    train = random_store(tmp_path / "t.gradstore", slots=slots)
    queries = random_store(tmp_path / "q.gradstore", 4, slots=5, seed=1)
    features = Features.of(train, measure_of("tracin"))
    asked = features.range(queries)
    proponents, _ = ExactEngine(train, features).search(asked, 6)
    found = explain(train, features, asked, proponents.samples)
    np.testing.assert_allclose(found.parts.sum(axis=2), proponents.scores, rtol=1e-4, atol=1e-5)
    pairs = breakdown(train, queries, features, 2, int(proponents.samples[2, 0]))
    assert pairs.shape == (2, 5, slots)
    np.testing.assert_allclose(pairs.sum(axis=(1, 2)), found.parts[2, 0], rtol=1e-4, atol=1e-5)


def test_matched_slots_are_taken_apart(tmp_path: Path) -> None:
    train = random_store(tmp_path / "t.gradstore", slots=3, even=True)
    queries = random_store(tmp_path / "q.gradstore", 4, slots=3, seed=1, even=True)
    features = Features.of(train, measure_of("retrac"), matched=True)
    asked = features.range(queries)
    proponents, _ = ExactEngine(train, features).search(asked, 1)
    pairs = breakdown(train, queries, features, 1, int(proponents.samples[1, 0]))
    assert pairs.sum() == pytest.approx(proponents.scores[1, 0], rel=1e-4)
    assert np.count_nonzero(pairs) == 2 * 3
    other = random_store(tmp_path / "o.gradstore", 4, slots=2, seed=1, even=True)
    with pytest.raises(QueryError, match="cannot be matched"):
        breakdown(train, other, features, 1, 0)


def test_without_projection_there_is_no_error(tmp_path: Path) -> None:
    train = random_store(tmp_path / "t.gradstore")
    features = Features.of(train, measure_of("retrac"))
    found = explain(train, features, features.range(train, 0, 1), np.array([[0, 1]]))
    assert not found.projection_error.any()
    assert np.isinf(found.z).all()


def test_self_influence(tmp_path: Path) -> None:
    train = random_store(tmp_path / "t.gradstore", slots=2)
    features = Features.of(train, measure_of("tracin"))
    whole = features.range(train).astype(np.float64)
    np.testing.assert_allclose(self_influence(train, features), (whole**2).sum(axis=1), rtol=1e-5)


def test_groups_are_summed_exactly(tmp_path: Path) -> None:
    train = random_store(tmp_path / "t.gradstore")
    queries = random_store(tmp_path / "q.gradstore", 4, seed=1)
    features = Features.of(train, measure_of("tracin"))
    asked = features.range(queries)
    names = np.random.default_rng(0).choice(["ann", "bob", "rare"], 300, p=[0.6, 0.39, 0.01])
    groups = [None if n % 10 == 0 else str(name) for n, name in enumerate(names)]
    found = rollup(ExactEngine(train, features), asked, groups, top=5)
    scores = asked.astype(np.float64) @ features.range(train).T.astype(np.float64)
    for place, name in enumerate(found.groups):
        own = scores[:, [group == name for group in groups]]
        assert found.counts[place] == own.shape[1]
        np.testing.assert_allclose(found.total[:, place], own.sum(axis=1), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found.mean[:, place], own.mean(axis=1), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found.highest[:, place], own.max(axis=1), rtol=1e-4)
        few = -np.sort(-own, axis=1)[:, :5]
        np.testing.assert_allclose(found.top_mean[:, place], few.mean(axis=1), rtol=1e-4)
    table = found.to_table(queries.manifest.ids)
    assert table.num_rows == 4 * len(found.groups)
    totals = table["total"].to_numpy().reshape(4, -1)
    assert (np.diff(totals, axis=1) <= 0).all()
    assert table["group"][0].as_py() == found.groups[int(np.argmax(found.total[0]))]


def test_groups_within_a_filter(tmp_path: Path) -> None:
    train = random_store(tmp_path / "t.gradstore")
    features = Features.of(train, measure_of("retrac"))
    engine = ExactEngine(train, features)
    groups = ["even", "odd"] * 145 + ["out"] * 10
    found = rollup(engine, features.range(train, 0, 2), groups, keep=np.arange(10, 20))
    assert found.groups == ["even", "odd"]
    assert found.counts.tolist() == [5, 5]
    for wrong, told in ((["a"], "1 groups were given"), ([None] * 300, "has a group")):
        with pytest.raises(QueryError, match=told):
            rollup(engine, features.range(train, 0, 2), wrong)
