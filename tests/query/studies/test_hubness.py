from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from gradstore.errors import QueryError
from indexer import ExactEngine, Features, measure_of
from query import search
from query.studies.hubness import hubness, hubness_of_results
from tests.support.drawn_stores import random_store
from tests.support.hostile_parquet import BOMBS

if TYPE_CHECKING:
    from pathlib import Path


def test_tracin_has_hubs_and_they_are_long(tmp_path: Path) -> None:
    train = random_store(tmp_path / "t.gradstore", metadata={"label": list(range(300))})
    queries = random_store(tmp_path / "q.gradstore", 40, slots=4, seed=1)
    found = {}
    for name in ("tracin", "retrac"):
        features = Features.of(train, measure_of(name))
        answer = search(ExactEngine(train, features), queries, 5)
        found[name] = hubness(answer)
        counts = [int((answer.proponents.samples == row).sum()) for row in range(300)]
        np.testing.assert_array_equal(found[name].counts, counts)
        sums = np.zeros(300)
        for row, score in zip(
            answer.proponents.samples.ravel(), answer.proponents.scores.ravel(), strict=True
        ):
            sums[row] += score / 40
        np.testing.assert_allclose(found[name].influence, sums, rtol=1e-6)
        for values, told in (
            (found[name].norm, found[name].influence_with_norm),
            (found[name].timestep, found[name].influence_with_timestep),
        ):
            assert told == pytest.approx(spearmanr(sums, values).statistic, rel=1e-4)
        assert found[name].distinctness == answer.distinctness()
    tracin, retrac = found["tracin"], found["retrac"]
    assert tracin.distinctness < retrac.distinctness
    assert tracin.with_norm > 0.4 > abs(retrac.with_norm)
    assert abs(tracin.with_timestep) < 0.2  # timestep and norm are independent here
    table = tracin.to_table()
    assert table["queries"].to_pylist() == sorted(tracin.counts[tracin.counts > 0])[::-1]
    first = int(np.argmax(tracin.counts))
    assert table["sample_id"][0].as_py() == f"s{first}"
    assert table["label"][0].as_py() == first
    expected = np.mean([train.rows(k).norm[first].mean() for k in range(2)])
    assert table["norm"][0].as_py() == pytest.approx(expected)
    tracin.plot(tmp_path / "hubs.png")
    assert (tmp_path / "hubs.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("measure", ["../../x", "/etc/x", "a/b", ".hidden", "", "\x1b[2J"])
def test_a_measure_s_name_never_leads_outside(tmp_path: Path, measure: str) -> None:
    train = random_store(tmp_path / "t.gradstore")
    row = {
        "query_id": "q",
        "measure": measure,
        "side": "proponent",
        "sample_id": "s0",
        "score": 1.0,
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "results.parquet")
    with pytest.raises(QueryError, match="is not a measure's name"):
        hubness_of_results(train, tmp_path / "results.parquet")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("measure", None),
        ("measure", 7),
        ("side", None),
        ("sample_id", ["s0"]),
        ("query_id", b"\xff"),
        ("score", "high"),
        ("score", None),
        ("score", {"a": 1.0}),
    ],
)
def test_foreign_tables_are_refused(tmp_path: Path, column: str, value: Any) -> None:
    train = random_store(tmp_path / "t.gradstore")
    row = {"query_id": "q", "measure": "m", "side": "proponent", "sample_id": "s0", "score": 1.0}
    lacking = {name: one for name, one in row.items() if name != column}
    for changed in ({**row, column: value}, lacking):
        pq.write_table(pa.Table.from_pylist([changed]), tmp_path / "results.parquet")
        with pytest.raises(QueryError, match=f"results.parquet cannot be read.*'{column}'"):
            hubness_of_results(train, tmp_path / "results.parquet")


@pytest.mark.parametrize("name", BOMBS)
def test_small_tables_of_gigabytes_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "results.parquet").write_bytes(BOMBS[name]())
    with pytest.raises(QueryError, match="results.parquet cannot be read"):
        hubness_of_results(random_store(tmp_path / "t.gradstore"), tmp_path / "results.parquet")
