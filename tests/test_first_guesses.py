"""First guesses of users who know TRAK, captum, FAISS, zarr or pandas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradstore as gs
from gradstore.collect import collect_config
from gradstore.errors import ConfigError, QueryError
from tests.support.drawn_stores import random_store
from tests.support.worlds import World


@pytest.fixture
def stores(tmp_path: Path) -> tuple[gs.Store, gs.Store]:
    labels: list[object] = [n % 3 for n in range(40)]
    train = random_store(tmp_path / "train.gradstore", 40, metadata={"label": labels})
    return train, random_store(tmp_path / "asked.gradstore", 3, seed=1)


def test_from_a_data_set_to_a_table_in_six_lines(
    world: World, image_folder: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"events": "planned", "objective": "l1"}
    store = gs.collect(
        image_folder, world.checkpoints, tmp_path / "t.gradstore", projector="sjlt", **options
    )
    asked = gs.collect_queries(store, image_folder, tmp_path / "q.gradstore", projector="sjlt")
    table = gs.search(store, asked, 3, measure="retrac").to_pandas()
    assert len(table) == 6 * 2 * 3


def test_a_path_is_as_good_as_a_store(stores: tuple[gs.Store, gs.Store]) -> None:
    train, asked = stores
    expected = gs.search(gs.ExactEngine(train, "tracin"), asked, 5)
    for engine in (
        gs.ExactEngine(train.location, gs.TracIn()),
        gs.ExactEngine(train, gs.Features.of(train.path, "tracin")),
    ):
        found = gs.search(engine, asked.path, 5)
        np.testing.assert_array_equal(found.proponents.samples, expected.proponents.samples)
    for place in (train, train.path, train.location):
        found = gs.search(place, asked.location, 5, measure="tracin")
        np.testing.assert_array_equal(found.proponents.samples, expected.proponents.samples)
    gs.build_index(train.location, "tracin")
    index = gs.open_index(gs.index_path(train.path, "tracin"), train.path, "tracin")
    assert index.spec.count == 40
    found = gs.search(train.path, asked, 5, measure="tracin")  # by the index that stands now
    np.testing.assert_array_equal(found.proponents.samples, expected.proponents.samples)


def test_a_query_side_measure_is_not_broken_down(stores: tuple[gs.Store, gs.Store]) -> None:
    train, asked = stores
    with pytest.raises(QueryError, match="trak"):
        gs.breakdown(train, asked, gs.Features.of(train, "trak"), 0, 0)


def test_a_store_needs_a_measure(stores: tuple[gs.Store, gs.Store]) -> None:
    with pytest.raises(QueryError, match="measure='tracin'"):
        gs.search(stores[0], stores[1])


@pytest.mark.parametrize(
    ("option", "mend"),
    [
        ({"batchsize": 1}, "'batch_size'"),
        ({"eta": [1.0]}, "'etas'"),
        ({"proj_dim": 64}, r"projector=ProjectorSpec\(proj_dim=…\)"),
        ({"timesteps": 4}, r"events=EventSpec\(timesteps=…\)"),
        ({"projector": "sjl"}, "'sjlt'"),
    ],
)
def test_an_option_that_is_nearly_right_is_named(
    world: World, tmp_path: Path, option: dict[str, Any], mend: str
) -> None:
    with pytest.raises(ConfigError, match=mend):
        gs.collect(world.train, world.checkpoints, tmp_path / "s.gradstore", **option)
    assert not (tmp_path / "s.gradstore").exists()


@pytest.mark.parametrize("wrong", [{"proj_dim": -1}, {"projector": "dense"}, {"dims": 4}])
def test_a_wrong_specification_is_told_in_our_words(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"ProjectorSpec: {next(iter(wrong))} is"):
        gs.ProjectorSpec(**wrong)


def test_an_answer_is_a_sequence_and_a_table(stores: tuple[gs.Store, gs.Store]) -> None:
    train, asked = stores
    answer = gs.search(train, asked, 4, measure="tracin")
    assert len(answer) == 3
    for number, one in enumerate(answer):
        assert len(one) == 1
        assert one.proponent_ids[0] == answer.proponent_ids[number]
        assert one.to_table().equals(answer.to_table().slice(number * 8, 8))
    assert answer.opponent_ids[0][0] == train.manifest.ids[answer.opponents.samples[0, 0]]
    assert len(repr(answer)) < 200
    page = answer._repr_html_()
    assert page.count("<tr>") == 21
    assert "(4 more rows)" in page


def test_a_notebook_shows_pictures(world: World, image_folder: Path, tmp_path: Path) -> None:
    config = gs.CollectConfig(
        dataset=str(image_folder), checkpoints=list(map(str, world.checkpoints)),
        store=str(tmp_path / "t.gradstore"), projector="sjlt", proj_dim=64, events="planned",
        loss="l1",
    )  # fmt: skip
    store = collect_config(config)
    asked = gs.collect_queries(
        store, image_folder, tmp_path / "q.gradstore", config={"dataset": str(image_folder)}
    )
    page = gs.search(store, asked, 3, measure="tracin")._repr_html_()
    assert page.count('<img alt="') == 5 * (1 + 2 * 3)
    assert "<script" not in page
    assert "(1 more queries)" in page


def test_other_results_are_tables_too(stores: tuple[gs.Store, gs.Store]) -> None:
    train, asked = stores
    engine = gs.ExactEngine(train, "tracin")
    answer = gs.search(engine, asked, 4)
    queries = engine.features.range(asked)
    groups = gs.rollup(engine, queries, train.manifest.metadata["label"])
    hubs = gs.hubness(answer)
    for result in (groups, hubs, answer.explained):
        assert len(repr(result)) < 200
        assert len(result.to_pandas()) == len(result.to_table())
        assert "<table>" in result._repr_html_()
    assert len(groups) == 3
    assert len(hubs) == 40
    assert answer.explained.to_table()["score"].to_pylist()[:4] == pytest.approx(
        answer.proponents.scores[0].tolist(), rel=1e-3
    )


def test_a_store_says_how_large_it_is_and_changes(stores: tuple[gs.Store, gs.Store]) -> None:
    train, _ = stores
    assert len(train) == train.num_samples == 40
    assert train.num_checkpoints == 2
    assert train.info()["samples"] == 40
    assert len(train.delete(["s3"])) == 39
    assert len(gs.delete(train.path, ["s4"])) == 38


def test_samples_of_a_folder_are_named_by_their_files(image_folder: Path) -> None:
    for given in (image_folder, str(image_folder)):
        found = gs.Samples(given)
        assert found.ids == gs.Samples.of(given).ids
        assert set(found.ids) == {f"{'cat' if n % 2 else 'dog'}/{n}.png" for n in range(6)}
