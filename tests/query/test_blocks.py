"""Many queries, block by block: the answers equal those of single queries."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from gradstore.flags.query import QueryConfig
from indexer import ExactEngine, Features, build_index, measure_of
from indexer.studies import explanation as explanation_module
from query import Queries, ask, batches, blocks, search, to_table
from tests.support.drawn_stores import random_store

if TYPE_CHECKING:
    from pathlib import Path

    from gradstore.store.reader import Store


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Store, Store]:
    train = random_store(
        tmp_path / "t.gradstore", 200, metadata={"label": [str(n % 3) for n in range(200)]}
    )
    labels: list[object] = [None if n < 10 else str(n % 4) for n in range(25)]
    queries = random_store(
        tmp_path / "q.gradstore", 25, slots=3, seed=1, metadata={"label": labels}
    )
    return train, queries


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("measure", ["tracin", "trak"])
def test_a_block_finds_what_one_at_a_time_finds(
    stores: tuple[Store, Store], indexed: bool, measure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, queries = stores
    monkeypatch.setattr(explanation_module, "_BLOCK_BYTES", 4 * 64 * 7)  # several pieces
    features = Features.of(train, measure_of("tracin"))
    engine = build_index(train, "tracin") if indexed else ExactEngine(train, features)
    own = Queries.of(queries)
    single = [search(engine, own.part(q, q + 1), 6, measure=measure) for q in range(25)]
    found = list(batches(engine, queries, 6, measure=measure, size=7))
    assert [len(answer.queries) for answer in found] == [7, 7, 7, 4]
    assert [name for answer in found for name in answer.queries.ids] == list(own.ids)
    expected = to_table(single).to_pandas()
    actual = to_table(found).to_pandas()
    numbers = ["score", "z", "projection_error"]
    pd.testing.assert_frame_equal(
        actual.drop(columns=[*numbers, "parts"]), expected.drop(columns=[*numbers, "parts"])
    )
    np.testing.assert_allclose(actual[numbers], expected[numbers], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        np.stack(actual["parts"].tolist()), np.stack(expected["parts"].tolist()), atol=1e-5
    )
    np.testing.assert_allclose(
        np.stack(actual["parts"].tolist()).sum(axis=1), actual["score"], rtol=1e-3, atol=1e-4
    )


def test_blocks_take_bounded_memory(stores: tuple[Store, Store]) -> None:
    engine = ExactEngine(stores[0], Features.of(stores[0], measure_of("tracin")))
    few, many = (blocks.block_size(engine, k) for k in (1000, 1))
    assert 1 <= few < many


def config(stores: tuple[Store, Store], out: Path, **given: Any) -> QueryConfig:
    train, queries = (store.location for store in stores)
    return QueryConfig(store=train, queries=queries, out=str(out), k=4, **given)


def test_a_killed_run_goes_on_at_whole_blocks(
    stores: tuple[Store, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("query.answering.block_size", lambda engine, k, slots: 6)
    ask.ask(config(stores, tmp_path / "whole"))
    asked: list[tuple[str, ...]] = []

    def dying(*args: Any, **options: Any) -> Any:
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(tuple(args[1].ids))
        return search(*args, **options)

    monkeypatch.setattr("query.answering.search", dying)
    with pytest.raises(KeyboardInterrupt):
        ask.ask(config(stores, tmp_path / "cut"))
    done = sorted((tmp_path / "cut" / "blocks").glob("*.parquet"))
    assert len(done) == 3
    assert not (tmp_path / "cut" / "results.parquet").exists()
    times = [file.stat().st_mtime_ns for file in done]
    monkeypatch.setattr("query.answering.search", search)
    seen = []
    write = blocks.Blocks.write

    def kept(self: Any, measure: int, start: int, answer: Any) -> None:
        seen.append((measure, start))
        assert times == [file.stat().st_mtime_ns for file in done]
        write(self, measure, start, answer)

    monkeypatch.setattr(blocks.Blocks, "write", kept)
    ask.ask(config(stores, tmp_path / "cut"))
    assert seen == [(0, 18), (0, 24), *((1, start) for start in (0, 6, 12, 18, 24))]
    assert not (tmp_path / "cut" / "blocks").exists()
    pd.testing.assert_frame_equal(
        *(pd.read_parquet(tmp_path / name / "results.parquet") for name in ("whole", "cut"))
    )
    pages = [(tmp_path / name / "report.html").read_text() for name in ("whole", "cut")]
    assert pages[0] == pages[1]


def test_blocks_of_something_else_are_thrown_away(
    stores: tuple[Store, Store], tmp_path: Path
) -> None:
    engine = ExactEngine(stores[0], Features.of(stores[0], measure_of("tracin")))
    first = blocks.Blocks(tmp_path / "b", {"k": 1})
    first.write(0, 0, search(engine, stores[1], 1))
    assert blocks.Blocks(tmp_path / "b", {"k": 1}).has(0, 0)
    assert not blocks.Blocks(tmp_path / "b", {"k": 2}).has(0, 0)


def test_json_lines_hold_what_parquet_holds(stores: tuple[Store, Store], tmp_path: Path) -> None:
    ask.ask(config(stores, tmp_path / "p", measures=["tracin", "trak"]))
    ask.ask(config(stores, tmp_path / "j", measures=["tracin", "trak"], format="jsonl"))
    lines = (tmp_path / "j" / "results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    expected = pd.read_parquet(tmp_path / "p" / "results.parquet")
    assert len(rows) == len(expected) == 2 * 25 * 2 * 4
    assert [row["sample_id"] for row in rows] == expected["sample_id"].tolist()
    assert rows[0]["score"] == pytest.approx(expected["score"][0])
    assert rows[-1]["z"] is None  # JSON has no NaN
    assert rows[0]["query_label"] is None


def test_a_report_of_many_queries_shows_the_first_and_says_so(
    stores: tuple[Store, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("query.ask._SHOWN_PICTURES", 2 * 2 * 3 * 5)
    monkeypatch.setattr("query.ask._SHOWN_RANKS", 3)
    result = ask.ask(config(stores, tmp_path / "a"))
    page = (tmp_path / "a" / "report.html").read_text()
    assert page.count('<article class="query"') == 5
    assert page.count("<li class") == 5 * 2 * 2 * 3
    assert "The first 5 of 25 queries are shown, and 3 samples on each side" in page
    # The summary covers all queries.
    engine = ExactEngine(stores[0], Features.of(stores[0], measure_of("tracin")))
    answer = search(engine, stores[1], 4)
    share, chance = answer.label_share()
    assert f"{answer.distinctness():.2f}" in result.text
    assert f"{chance:.2f}" in result.text
    same = [
        own is not None and own == stores[0].manifest.metadata["label"][row]
        for own, rows in zip(stores[1].manifest.metadata["label"], answer.proponents.samples,
                             strict=True)
        for row in rows.tolist()
    ]  # fmt: skip
    assert share == pytest.approx(np.mean(same))
    assert f"{np.mean(same):.2f}" in result.text
