from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradstore.collect import (
    EventPlan,
    EventSpec,
    PlannedEvents,
    ProjectorSpec,
    ReplayedEvents,
    Samples,
    collect,
)
from gradstore.errors import FingerprintError, QueryError
from gradstore.store.reader import Store
from indexer import build_index
from query import Answer, collect_queries, search, to_table
from tests.support import naive
from tests.support.collected import PAPER
from tests.support.worlds import World

PLAN = EventSpec(events="planned", timesteps=3, draws=2)
EXACT: dict[str, Any] = {
    "projector": ProjectorSpec(projector="identity"),
    "dtype": "float32",
    "metric": "none",
}


@pytest.fixture(scope="module")
def stores(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    folder = tmp_path_factory.mktemp("stores")
    train = collect(
        world.train, world.checkpoints, folder / "train.gradstore", events="replayed", **EXACT
    )
    queries = collect_queries(
        train, world.queries, folder / "queries.gradstore", events=PLAN, dtype="float32"
    )
    return train, queries


@pytest.mark.parametrize("measure", ["tracin", "retrac"])
def test_scores_equal_a_naive_loop(world: World, stores: tuple[Store, Store], measure: str) -> None:
    train, queries = stores
    assert train.etas == pytest.approx([0.1, 0.3])
    replayed = ReplayedEvents(world.checkpoints, 1000)
    planned = PlannedEvents(PLAN, 1000, "query")
    expected = naive.influence(
        [
            naive.full_gradients(c, world.train, replayed, k)
            for k, c in enumerate(world.checkpoints)
        ],
        [
            naive.full_gradients(c, world.queries, planned, k)
            for k, c in enumerate(world.checkpoints)
        ],
        [0.1, 0.3],
        retrac=measure == "retrac",
    ).numpy()
    answer = search(build_index(train, measure), queries, k=7)
    for query in range(3):
        order = np.argsort(-expected[query])
        assert answer.proponents.samples[query].tolist() == order.tolist()
        assert answer.opponents.samples[query].tolist() == order[::-1].tolist()
        np.testing.assert_allclose(
            answer.proponents.scores[query],
            expected[query][order],
            rtol=1e-4,
            atol=1e-4 * np.abs(expected).max(),
        )
    np.testing.assert_allclose(
        answer.opponents.scores, answer.proponents.scores[:, ::-1], rtol=1e-5
    )


@pytest.mark.parametrize("projector", ["trak", "sjlt"])
def test_projected_scores_approximate_the_exact_ones(
    world: World, tmp_path: Path, projector: str
) -> None:
    spec = ProjectorSpec.model_validate({"projector": projector, "proj_dim": 2048})
    train = collect(
        world.train, world.checkpoints, tmp_path / "t.gradstore", projector=spec, **PAPER
    )
    queries = collect_queries(train, world.queries, tmp_path / "q.gradstore", events=PLAN)
    exact_train = collect(
        world.train, world.checkpoints, tmp_path / "et.gradstore", events="replayed", **EXACT
    )
    exact_queries = collect_queries(
        exact_train, world.queries, tmp_path / "eq.gradstore", events=PLAN, dtype="float32"
    )
    found = _matrix(search(build_index(train, "retrac"), queries, k=7))
    expected = _matrix(search(build_index(exact_train, "retrac"), exact_queries, k=7))
    # Standard error of an inner product of unit vectors is at most √(2/dim); η sums to 0.4.
    assert np.abs(found - expected).max() < 5 * 0.4 * np.sqrt(2 / 2048)
    assert np.abs(found - expected).max() > 0


def test_d_trak_is_trak_of_the_outputs_square(world: World, tmp_path: Path) -> None:
    """Unprojected, by the formula in float64; queries inherit the store's objective."""
    train = collect(
        world.train, world.checkpoints, tmp_path / "t.gradstore", objective="square",
        projector=ProjectorSpec(projector="sjlt", proj_dim=64), dtype="float32", **PAPER,
    )  # fmt: skip
    exact = collect(
        world.train, world.checkpoints, tmp_path / "e.gradstore", objective="square",
        events="replayed", **EXACT,
    )  # fmt: skip
    queries = collect_queries(
        train, world.queries, tmp_path / "q.gradstore", events=PLAN, dtype="float32"
    )
    unprojected = collect_queries(
        exact, world.queries, tmp_path / "eq.gradstore", events=PLAN, dtype="float32"
    )
    plans: list[EventPlan] = [
        ReplayedEvents(world.checkpoints, 1000), PlannedEvents(PLAN, 1000, "query"),
    ]  # fmt: skip
    expected = np.zeros((3, 7))
    for k, (checkpoint, eta) in enumerate(zip(world.checkpoints, train.etas, strict=True)):
        for store, samples, plan in zip(
            (exact, unprojected), (world.train, world.queries), plans, strict=True
        ):
            full = naive.full_gradients(checkpoint, samples, plan, k, loss="square").numpy()
            rows = store.rows(k)
            np.testing.assert_allclose(
                rows.direction * rows.norm[:, :, None], full, rtol=1e-3, atol=1e-4 * full.max()
            )
        phi, asked = (
            (store.rows(k).direction.astype(np.float64) * store.rows(k).norm[:, :, None]).mean(1)
            for store in (train, queries)
        )
        gram = phi.T @ phi
        ridge = np.trace(gram) / len(phi)  # fewer samples than dimensions
        expected += eta * asked @ np.linalg.inv(gram + ridge * np.eye(64)) @ phi.T
    answer = search(build_index(train, "trak"), queries, k=7, measure="trak")
    np.testing.assert_allclose(_matrix(answer), expected, rtol=1e-3, atol=1e-5 * expected.max())


def _matrix(answer: Answer) -> np.ndarray[Any, Any]:
    out = np.empty_like(answer.proponents.scores)
    np.put_along_axis(out, answer.proponents.samples, answer.proponents.scores, axis=1)
    return out


def test_k_larger_than_the_store(stores: tuple[Store, Store]) -> None:
    with pytest.raises(
        QueryError, match=r"k is 8, but there are 7 samples of .* Use --k 7 or fewer"
    ):
        search(build_index(stores[0], "tracin"), stores[1], k=8)


def test_a_query_store_of_other_checkpoints_is_refused(
    world: World, stores: tuple[Store, Store], tmp_path: Path
) -> None:
    other = collect(
        world.queries,
        world.checkpoints[:1],
        tmp_path / "other.gradstore",
        events=PLAN,
        **EXACT,
    )
    with pytest.raises(FingerprintError, match=r"(?s)checkpoints.*To mend it: collect the queries"):
        search(build_index(stores[0], "tracin"), other, k=1)


def test_a_query_with_moved_and_changed_checkpoints_is_refused_before_any_work(
    world: World, stores: tuple[Store, Store], tmp_path: Path
) -> None:
    path = tmp_path / "q.gradstore"
    with pytest.raises(FingerprintError, match=r"(?s)checkpoints\.0\.weights.*gradstore info"):
        collect_queries(
            stores[0], world.queries, path, checkpoints=world.checkpoints[::-1], events=PLAN
        )
    assert not path.exists()


def test_a_query_never_has_a_training_samples_noise(world: World, tmp_path: Path) -> None:
    """Both are planned with the same id and seed: equal noise would make them similar."""
    train = collect(world.train, world.checkpoints, tmp_path / "t.gradstore", events=PLAN, **EXACT)
    queries = collect_queries(
        train, world.train, tmp_path / "q.gradstore", events=PLAN, dtype="float32"
    )
    np.testing.assert_array_equal(train.rows(0).timestep, queries.rows(0).timestep)
    assert (train.rows(0).loss != queries.rows(0).loss).all()
    assert not np.intersect1d(
        PlannedEvents(PLAN, 1000).at(0, ["a"]).key,
        PlannedEvents(PLAN, 1000, "query").at(0, ["a"]).key,
    ).size


def test_queries_are_collected_here_whatever_the_rank(
    world: World, stores: tuple[Store, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    queries = collect_queries(stores[0], world.queries, tmp_path / "q.gradstore", events=PLAN)
    queries.require_complete()


def test_labels_that_have_nothing_in_common_are_not_compared(
    world: World, stores: tuple[Store, Store], tmp_path: Path
) -> None:
    named = Samples([(world.queries.image(0), "plane")], ids=["x"])
    queries = collect_queries(stores[0], named, tmp_path / "q.gradstore", events=PLAN)
    with pytest.raises(QueryError, match="share none"):
        search(build_index(stores[0], "retrac"), queries, k=2).label_share()


def test_table_and_shares(stores: tuple[Store, Store]) -> None:
    train, queries = stores
    answer = search(build_index(train, "retrac"), queries, k=2)
    table = to_table([answer]).to_pylist()
    assert len(table) == 3 * 2 * 2
    first = table[0]
    assert first["query_id"] == "ask-a"
    assert first["query_label"] == "0"
    assert (first["measure"], first["side"], first["rank"]) == ("retrac", "proponent", 1)
    row = int(answer.proponents.samples[0, 0])
    assert first["sample_id"] == f"image-{row}"
    assert first["label"] == train.manifest.metadata["label"][row]
    assert first["timesteps"] == [int(train.rows(k).timestep[row, 0]) for k in range(2)]
    labels = np.array(train.manifest.metadata["label"])
    share, chance = answer.label_share()
    assert share == np.mean(labels[answer.proponents.samples] == np.array([["0"], ["1"], ["2"]]))
    assert chance == pytest.approx((3 + 2 + 2) / 7 / 3)
    assert answer.distinctness() == len(set(answer.proponents.samples.flatten().tolist())) / 6


def test_labels_are_needed_for_a_label_share(
    world: World, stores: tuple[Store, Store], tmp_path: Path
) -> None:
    bare = Samples([world.queries.image(0)], ids=["x"])
    queries = collect_queries(stores[0], bare, tmp_path / "q.gradstore", events=PLAN)
    with pytest.raises(QueryError, match="no labels to compare"):
        search(build_index(stores[0], "retrac"), queries, k=2).label_share()
