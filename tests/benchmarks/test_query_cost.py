from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.query_cost import PRESETS, run
from benchmarks.worlds.setting import Folders


def test_it_tells_what_is_kept_and_what_it_costs(tmp_path: Path, folders: Folders) -> None:
    targets = run(PRESETS["tiny"], tmp_path, folders)
    written = json.loads((tmp_path / "query_cost.json").read_text())
    assert [one["measured"] for one in written["targets"]] == [t.measured for t in targets]
    figures = written["figures"]
    # The full question agrees with itself.
    for measure, one in figures["kept"]["6 × 2 × 2"].items():
        assert one["mean"] == pytest.approx(1, abs=1e-6), measure
    for found in figures["kept"].values():
        assert all(-1 <= one["mean"] <= 1.000001 for one in found.values())
    seconds = figures["seconds"]
    assert all(0 < one["low"] <= one["median"] <= one["high"] for one in seconds.values())
    assert min(one["mean"] for one in figures["kept"][figures["cheapest"]].values()) >= 0.95
    page = (tmp_path / "query_cost.md").read_text()
    assert f"| {figures['cheapest']} |" in page
