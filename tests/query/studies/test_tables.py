"""Groups, outliers, hubs and pairs of rows, by the commands, against naive float64."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from gradstore.store.reader import Store
from indexer import ExactEngine, Features, measure_of
from query import cli, hubness, search, to_table
from query.results.table import shown, write_table
from tests.support.drawn_stores import random_store


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Store, Store]:
    labels: list[object] = [None if n == 7 else f"g{n % 4}" for n in range(150)]
    train = random_store(tmp_path / "t.gradstore", 150, slots=2, metadata={"label": labels})
    return train, random_store(tmp_path / "q.gradstore", 6, slots=3, seed=1)


def run(*arguments: object, status: int = 0) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gradstore", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    assert (stopped.value.code or 0) == status


def features(store: Store, etas: tuple[float, ...] = (0.5, 1.0)) -> np.ndarray[tuple[int, int]]:
    parts = []
    for k, eta in enumerate(etas):
        rows = store.rows(k)
        gradients = rows.direction.astype(np.float64) * rows.norm[:, :, None]
        parts.append(np.sqrt(eta) * gradients.mean(axis=1))
    return np.concatenate(parts, axis=1)


def test_rollup(stores: tuple[Store, Store], tmp_path: Path) -> None:
    train, queries = stores
    run("rollup", "--store", train.location, "--queries", queries.location, "--measure", "tracin",
        "--etas", "2,1", "--top", 3, "--out", tmp_path / "g.parquet")  # fmt: skip
    table = pd.read_parquet(tmp_path / "g.parquet").set_index(["query_id", "group"])
    scores = features(queries, (2, 1)) @ features(train, (2, 1)).T
    labels = np.array(train.manifest.metadata["label"], object)
    assert len(table) == 6 * 4
    for query in range(6):
        for group in ("g0", "g1", "g2", "g3"):
            own = np.sort(scores[query, labels == group])[::-1]
            row = table.loc[(f"s{query}", group)]
            assert row["samples"] == len(own)
            for name, value in (
                ("total", own.sum()),
                ("mean", own.mean()),
                ("highest", own[0]),
                ("top_mean", own[:3].mean()),
            ):
                assert row[name] == pytest.approx(value, rel=1e-3, abs=1e-3)


def test_self_influence(
    stores: tuple[Store, Store], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, _ = stores
    run("self-influence", "--store", train.location, "--out", tmp_path / "o.parquet")
    assert "… and 140 more" in capsys.readouterr().out
    table = pd.read_parquet(tmp_path / "o.parquet")
    own = (features(train) ** 2).sum(axis=1)
    assert table["sample_id"].tolist() == [f"s{row}" for row in np.argsort(-own)]
    np.testing.assert_allclose(table["self_influence"], np.sort(own)[::-1], rtol=1e-4)
    logs = np.log(own)
    deviation = np.median(np.abs(logs - np.median(logs)))
    expected = (logs.max() - np.median(logs)) / (1.4826 * deviation)
    assert table["robust_z"][0] == pytest.approx(expected, rel=1e-3)
    run("self-influence", "--store", train.location, "--out", tmp_path / "o.parquet", status=1)
    run("self-influence", "--store", train.location, "--out", tmp_path / "o.csv", status=1)


def test_hubness_of_results_is_that_of_the_answer(
    stores: tuple[Store, Store], tmp_path: Path
) -> None:
    train, queries = stores
    answers = [
        search(ExactEngine(train, Features.of(train, measure_of(name))), queries, 4)
        for name in ("tracin", "retrac")
    ]
    table = to_table(answers)
    write_table(table, tmp_path / "results.parquet", table.schema)
    run("hubness", "--store", train.location, "--results", tmp_path / "results.parquet", "--out",
        tmp_path / "hubs")  # fmt: skip
    for answer in answers:
        expected = hubness(answer)
        assert pq.read_table(tmp_path / "hubs" / f"{answer.measure}.parquet") == expected.to_table()
        assert (tmp_path / "hubs" / f"{answer.measure}.png").read_bytes()[:4] == b"\x89PNG"
        assert expected.k == 4
    other = random_store(tmp_path / "o.gradstore", 20)
    run("hubness", "--store", other.location, "--results", tmp_path / "results.parquet", "--out",
        tmp_path / "no", status=1)  # fmt: skip
    assert not (tmp_path / "no").exists()


def test_breakdown(stores: tuple[Store, Store], tmp_path: Path) -> None:
    train, queries = stores
    pair = ("--queries", queries.location, "--query", "s2", "--measure", "tracin")
    run("breakdown", "--store", train.location, *pair, "--sample", "s44", "--out",
        tmp_path / "b.parquet")  # fmt: skip
    table = pd.read_parquet(tmp_path / "b.parquet")
    assert len(table) == 2 * 3 * 2
    assert table["score"].sum() == pytest.approx(
        features(queries)[2] @ features(train)[44], rel=1e-4
    )
    first = table[table.checkpoint == 1].iloc[1]
    assert first["query_timestep"] == queries.rows(1).timestep[2, 0]
    assert first["sample_timestep"] == train.rows(1).timestep[44, 1]
    left, right = (store.rows(1) for store in (queries, train))
    expected = (
        left.direction[2, 0].astype(np.float64) @ right.direction[44, 1].astype(np.float64)
        * left.norm[2, 0] * right.norm[44, 1] / 6
    )  # fmt: skip
    assert first["score"] == pytest.approx(expected, rel=1e-3)
    run("breakdown", "--store", train.location, *pair, "--sample", "nobody", "--out",
        tmp_path / "c.parquet", status=1)  # fmt: skip


def test_a_short_table_is_shown_whole() -> None:
    import pyarrow as pa

    text = shown(pa.table({"a": [1, 22], "b": [0.12345678, float("nan")]}))
    assert text.splitlines() == ["a   b", "1   0.1235", "22  nan"]
