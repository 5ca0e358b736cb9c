from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from gradstore.errors import DatasetError, StoreError
from gradstore.manifest import Manifest

GOOD = Manifest(["a", "b"], ["1", "2"], {"label": ["x", "y"]})


def test_round_trip_and_pandas(tmp_path: Path) -> None:
    GOOD.save(tmp_path)
    assert Manifest.load(tmp_path) == GOOD
    table = pd.read_parquet(tmp_path / "manifest.parquet")
    assert table.to_dict("list") == {"id": ["a", "b"], "digest": ["1", "2"], "label": ["x", "y"]}
    assert GOOD.position == {"a": 0, "b": 1}


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "the dataset is empty"),
        (["a", "b", "a"], r"id 'a' stands 2 times \(rows 0, 2"),
        (["a", ""], "row 1 has id ''"),
        (["a", "x" * 513], "1 to 512 characters"),
    ],
)
def test_bad_ids(ids: list[str], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        Manifest(ids, ["0"] * len(ids))


def test_reserved_names_and_mixed_types(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"'id' has a name that gradstore uses itself"):
        Manifest(["a"], ["1"], {"id": ["x"]})
    with pytest.raises(DatasetError, match="'year' cannot be stored as one type"):
        Manifest(["a", "b"], ["1", "2"], {"year": [1, "x"]}).save(tmp_path)


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


def test_a_damaged_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.parquet").write_bytes(b"PAR1 this is not a table")
    with pytest.raises(StoreError, match="cannot be read as a manifest"):
        Manifest.load(tmp_path)
