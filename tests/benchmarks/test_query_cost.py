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
    figures = written["figures"]["digits"]
    # The full question keeps all of its own.
    for one in figures["kept"]["4 × 2 × 2"].values():
        assert one["choosing"]["mean"] == one["reported"]["mean"] == pytest.approx(1)
    seconds = figures["seconds"]
    assert all(0 < one["low"] <= one["median"] <= one["high"] for one in seconds.values())
    asked = figures["questions"]["the cheapest question"]
    cheapest = figures["kept"][asked]
    assert min(one["choosing"]["mean"] for one in cheapest.values()) >= 0.95
    page = (tmp_path / "query_cost.md").read_text()
    assert f"the cheapest question, {asked} |" in page
    large = written["figures"]["large"]
    assert large["questions"].keys() | {"generating"} == large["seconds"].keys()
