from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from gradstore.errors import DatasetError, StoreError
from gradstore.store.format.manifest import Manifest
from tests.support.hostile_parquet import written

GOOD = Manifest(["a", "b"], ["1", "2"], {"label": ["x", "y"]})


def test_round_trip_and_pandas(tmp_path: Path) -> None:
    (tmp_path / "manifest.parquet").write_bytes(GOOD.content())
    assert Manifest.parse(GOOD.content(), where="m", samples=2) == GOOD
    table = pd.read_parquet(tmp_path / "manifest.parquet")
    assert table.to_dict("list") == {"id": ["a", "b"], "digest": ["1", "2"], "label": ["x", "y"]}
    assert GOOD.find(["b", "c", "a"]) == {"a": 0, "b": 1}


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "the dataset is empty"),
        (["a", "b", "a"], r"id 'a' occurs 2 times \(rows 0, 2"),
        (["a", ""], "row 1 has id ''"),
        (["a", "x" * 513], "1 to 512 characters"),
        (["ä", "b\udce4.png"], r"row 1 has id 'b\\udce4.png', which is no Unicode text"),
    ],
)
def test_bad_ids(ids: list[str], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        Manifest(ids, ["0"] * len(ids))


def test_reserved_names_and_mixed_types() -> None:
    with pytest.raises(DatasetError, match=r"'id' has a name that gradstore uses itself"):
        Manifest(["a"], ["1"], {"id": ["x"]})
    with pytest.raises(DatasetError, match="'year' cannot be stored as one type"):
        Manifest(["a", "b"], ["1", "2"], {"year": [1, "x"]}).content()
    for value in (2**64, "\udce4"):
        with pytest.raises(DatasetError, match="'what' cannot be stored as one type"):
            Manifest(["a"], ["1"], {"what": [value]}).content()


def test_columns_must_be_as_long_as_ids() -> None:
    with pytest.raises(DatasetError, match="column 'label' has 1 values for 2 samples"):
        Manifest(["a", "b"], ["1", "2"], {"label": ["x"]})


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (Manifest(["a"], ["1"]), "had 2 samples and now has 1"),
        (Manifest(["a", "c"], ["1", "2"]), "row 1 was sample 'b' and is now 'c'"),
        (Manifest(["a", "b"], ["1", "3"]), "content of sample 'b' differs"),
    ],
)
def test_a_changed_dataset_is_named(now: Manifest, message: str) -> None:
    GOOD.require_same(Manifest(["a", "b"], ["1", "2"]), store="S")
    with pytest.raises(DatasetError, match=message):
        GOOD.require_same(now, store="S")


def test_a_damaged_manifest() -> None:
    with pytest.raises(StoreError, match="m cannot be read as a manifest"):
        Manifest.parse(b"PAR1 this is not a table", where="m", samples=1)
    with pytest.raises(StoreError, match="lists 2 samples, the layout says 3"):
        Manifest.parse(GOOD.content(), where="m", samples=3)


def test_chosen_and_joined() -> None:
    more = Manifest(["c"], ["3"], {"year": [1999]})
    both = Manifest.joined([GOOD, more])
    assert both.ids == ["a", "b", "c"]
    assert both.metadata == {"label": ["x", "y", None], "year": [None, None, 1999]}
    assert both.chosen(np.array([2, 0])) == Manifest(
        ["c", "a"], ["3", "1"], {"label": [None, "x"], "year": [1999, None]}
    )


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**62], pa.timestamp("us")),
        pa.array([2**62], pa.timestamp("us", "Nowhere/Nothing")),
        pa.array([2**62], pa.duration("s")),
        pa.array([-(2**31)], pa.date32()),
    ],
    ids=lambda column: str(column.type),
)
def test_times_out_of_range(column: pa.Array) -> None:
    content = written(pa.table({"id": ["a"], "digest": ["0"], "when": column}))
    found = Manifest.parse(content, where="m", samples=1)
    assert found.ids == ["a"]
    with pytest.raises(StoreError, match="m cannot be read as a manifest"):
        _ = found.metadata["when"][0]
