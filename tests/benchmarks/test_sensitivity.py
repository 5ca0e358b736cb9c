from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.sensitivity import MEASURES, NEAREST, PRESETS, planted, run
from benchmarks.worlds.setting import Folders


def test_it_asks_about_a_table(tmp_path: Path, folders: Folders) -> None:
    targets = run(PRESETS["tiny"], tmp_path, folders)
    written = json.loads((tmp_path / "sensitivity.json").read_text())
    assert [one["measured"] for one in written["targets"]] == [t.measured for t in targets]
    asked = written["figures"]["asked"]
    assert set(asked) == {*MEASURES, NEAREST, "chance", "chance of outliers"}
    for name in (*MEASURES, NEAREST):
        for share in (
            asked[name]["label"],
            asked[name]["outliers"],
            *asked[name]["copies"].values(),
        ):
            assert 0 <= share["low"] <= share["mean"] <= share["high"] <= 1
    assert asked[NEAREST]["copies"]["0"]["mean"] == 1
    for one in written["figures"]["detectors"].values():
        assert all(0 <= figure["mean"] <= 1 for figure in one.values())
    assert np.shape(written["figures"]["norm with timestep"]) == (2, 2)
    assert (tmp_path / "sensitivity.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_planted() -> None:
    preset = replace(PRESETS["tiny"], rows=300)
    table = planted(preset)
    assert len(table.values) == len(table.labels) == 300 + 4 + 4
    copies = np.flatnonzero(table.copy_of >= 0)
    away = np.abs(table.values[copies] - table.values[table.copy_of[copies]]).max(axis=1)
    assert (away == 0).tolist() == (table.noisy[copies] == 0).tolist() == [True] * 2 + [False] * 2
    assert [table.labels[row] for row in copies] == [table.labels[r] for r in table.copy_of[copies]]
    assert table.strange[-4:].tolist() == [1, 1, 4, 4]
    assert table.values[:300, :30].mean(axis=0) == pytest.approx(0, abs=1e-4)
    # No row is both copied and an outlier, and no held-out row is a training row.
    assert not set(map(bytes, table.asked)) & set(map(bytes, table.values))
    assert len(table.query_values()) == preset.heldout + 4
