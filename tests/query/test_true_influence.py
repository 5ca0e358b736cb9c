"""True influence, against a store of whole gradients and the definition in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradstore.collect import (
    EventSpec,
    PlannedEvents,
    ProjectorSpec,
    ReplayedEvents,
    Samples,
    collect,
)
from gradstore.collect.unprojected import Unprojected
from gradstore.errors import ConfigError, DatasetError, FingerprintError, QueryError
from gradstore.store.reader import Store
from indexer import ExactEngine, Features, measure_of
from query import Queries, collect_queries, rerank, search
from query.true_influence import Sources
from tests.support import naive
from tests.support.collected import PAPER
from tests.support.worlds import World, images, save_checkpoint

PLAN = EventSpec(events="planned", timesteps=3, draws=2)
Stores = tuple[Store, Store]


@pytest.fixture(scope="module")
def stores(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stores]:
    """Noisy stores of few dimensions and the exact ones, under the same names."""
    folder = tmp_path_factory.mktemp("rerank")
    made = {}
    for name, spec in (
        ("few", ProjectorSpec(projector="sjlt", proj_dim=16)),
        ("whole", ProjectorSpec(projector="identity")),
    ):
        train = collect(
            world.train, world.checkpoints, folder / f"{name}.gradstore", projector=spec,
            dtype="float32", **PAPER,
        )  # fmt: skip
        queries = collect_queries(
            train, world.queries, folder / f"{name}-q.gradstore", events=PLAN, dtype="float32"
        )
        made[name] = train, queries
    return made


def sources(world: World) -> Sources:
    return Sources(train=world.train, queries=world.queries)


def engine(store: Store, measure: str, **options: Any) -> ExactEngine:
    return ExactEngine(store, Features.of(store, measure_of(measure), **options))


@pytest.mark.parametrize("measure", ["tracin", "retrac", "power:0.5", "retrac@100-900"])
@pytest.mark.parametrize("memory", [4.0, 0.02])
def test_true_influence_is_that_of_whole_gradients(
    world: World, stores: dict[str, Stores], measure: str, memory: float
) -> None:
    few, whole = (engine(stores[name][0], measure) for name in ("few", "whole"))
    expected = search(whole, stores["whole"][1], 7)
    found = search(few, stores["few"][1], 7)
    true = rerank(found, few.features, 7, sources(world), memory=memory)
    np.testing.assert_array_equal(true.proponents.samples, expected.proponents.samples)
    np.testing.assert_array_equal(true.opponents.samples, expected.opponents.samples)
    size = np.abs(expected.proponents.scores).max()
    for name, side in expected.sides.items():
        np.testing.assert_allclose(
            true.sides[name].scores, side.scores, rtol=1e-3, atol=1e-4 * size
        )
    np.testing.assert_allclose(
        true.explained.parts, expected.explained.parts, rtol=1e-3, atol=1e-4 * size
    )
    assert (true.explained.projection_error == 0).all()
    assert np.isinf(true.explained.z).all()
    # The projection changed them.
    assert np.abs(found.proponents.scores - expected.proponents.scores).max() > 1e-2 * size


@pytest.mark.parametrize("measure", ["tracin", "retrac"])
def test_true_influence_is_the_definition(
    world: World, stores: dict[str, Stores], measure: str
) -> None:
    replayed = ReplayedEvents(world.checkpoints, 1000)
    planned = PlannedEvents(PLAN, 1000, "query")
    folders = list(enumerate(world.checkpoints))
    expected = naive.influence(
        [naive.full_gradients(folder, world.train, replayed, k) for k, folder in folders],
        [naive.full_gradients(folder, world.queries, planned, k) for k, folder in folders],
        [0.1, 0.3],
        retrac=measure == "retrac",
    ).numpy()
    few = engine(stores["few"][0], measure)
    found = search(few, stores["few"][1], 4)
    true = rerank(found, few.features, 2, sources(world))
    assert true.proponents.samples.shape == (3, 2)
    for query in range(3):
        left = np.union1d(found.proponents.samples[query], found.opponents.samples[query])
        ranked = left[np.argsort(-expected[query, left])]
        assert true.proponents.samples[query].tolist() == ranked[:2].tolist()
        assert true.opponents.samples[query].tolist() == ranked[::-1][:2].tolist()
        np.testing.assert_allclose(
            true.proponents.scores[query],
            expected[query, ranked[:2]],
            rtol=1e-3,
            atol=1e-4 * np.abs(expected).max(),
        )


def test_sums_of_queries_and_weights_of_checkpoints(
    world: World, stores: dict[str, Stores]
) -> None:
    found = {}
    for name in ("few", "whole"):
        train, queries = stores[name]
        own = engine(train, "retrac", etas=[0, 2])
        found[name] = search(own, Queries.means(queries, "label").minus("label=2"), 7)
        if name == "few":
            found[name] = rerank(found[name], own.features, 7, sources(world))
    np.testing.assert_array_equal(
        found["few"].proponents.samples, found["whole"].proponents.samples
    )
    np.testing.assert_allclose(
        found["few"].proponents.scores, found["whole"].proponents.scores, rtol=1e-3, atol=1e-5
    )


def test_matched_timesteps(world: World, tmp_path: Path) -> None:
    found = {}
    for name, spec in (
        ("few", ProjectorSpec(projector="sjlt", proj_dim=16)),
        ("whole", ProjectorSpec(projector="identity")),
    ):
        train = collect(
            world.train, world.checkpoints, tmp_path / f"{name}.gradstore", projector=spec,
            dtype="float32", events=PLAN,
        )  # fmt: skip
        queries = collect_queries(
            train, world.queries, tmp_path / f"{name}-q.gradstore", events=PLAN, dtype="float32"
        )
        own = engine(train, "tracin", matched=True)
        found[name] = search(own, queries, 7)
        if name == "few":
            found[name] = rerank(found[name], own.features, 7, sources(world))
    np.testing.assert_array_equal(
        found["few"].proponents.samples, found["whole"].proponents.samples
    )
    np.testing.assert_allclose(
        found["few"].proponents.scores, found["whole"].proponents.scores, rtol=1e-3, atol=1e-6
    )


def test_few_gradients_are_held_at_once(
    world: World, stores: dict[str, Stores], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Candidates in pieces of the engine; as many query sums as fit half of the memory."""
    seen: list[int] = []
    sums = Unprojected.sums

    def counted(self: Unprojected, checkpoint: int, weights: Any) -> torch.Tensor:
        seen.append(len(weights))
        return sums(self, checkpoint, weights)

    monkeypatch.setattr(Unprojected, "sums", counted)
    few = engine(stores["few"][0], "retrac")
    found = search(few, stores["few"][1], 7)
    length = stores["few"][0].spec.identity["model"]["num_parameters"]  # type: ignore[index,call-overload]
    two = 2.5 * 4 * int(length) / 2**30  # type: ignore[arg-type]
    whole = rerank(found, few.features, 7, sources(world), memory=0.05)
    monkeypatch.setattr("query.true_influence._HELD", two / 0.05)
    cut = rerank(found, few.features, 7, sources(world), memory=0.05)
    assert seen == [3, 3, 2, 2, 1, 1]
    np.testing.assert_allclose(cut.proponents.scores, whole.proponents.scores, rtol=1e-4)


def test_what_cannot_be_had_again_is_told(
    world: World, stores: dict[str, Stores], tmp_path: Path
) -> None:
    train, queries = stores["few"]
    few = engine(train, "retrac")
    found = search(few, queries, 7)
    with pytest.raises(ConfigError, match="collected from Python and does not know its dataset"):
        rerank(found, few.features, 3)
    fewer = Sources(train=world.train.only(["image-1"]), queries=world.queries)
    with pytest.raises(DatasetError, match="has no sample 'image-0'"):
        rerank(found, few.features, 3, fewer)
    others = Samples(
        list(zip(images(7, seed=9), [0, 1, 2, 0, 1, 2, 0], strict=True)),
        ids=[f"image-{n}" for n in range(7)],
    )
    with pytest.raises(DatasetError, match="content of sample 'image-0' differs"):
        rerank(found, few.features, 3, Sources(train=others, queries=world.queries))
    moved = [
        save_checkpoint(tmp_path / f"{k}", epoch=k + 5, learning_rate_sum=k + 1) for k in range(2)
    ]
    elsewhere = Sources(train=world.train, queries=world.queries, checkpoints=moved)
    with pytest.raises(FingerprintError, match="checkpoints"):
        rerank(found, few.features, 3, elsewhere)
    with pytest.raises(QueryError, match="k is 8, but 7 candidates"):
        rerank(found, few.features, 8, sources(world))
    own = engine(train, "tracin")
    kernel = search(own, queries, 7, measure="trak")
    with pytest.raises(ConfigError, match="no true influence"):
        rerank(kernel, own.features, 3, sources(world))
