from __future__ import annotations

import json
from typing import TYPE_CHECKING

from benchmarks.collect import PRESETS, run

if TYPE_CHECKING:
    from pathlib import Path


def test_it_measures_and_writes_what_it_found(tmp_path: Path) -> None:
    targets = run(PRESETS["tiny"], tmp_path)
    written = json.loads((tmp_path / "collect.json").read_text())
    assert [target["measured"] for target in written["targets"]] == [t.measured for t in targets]
    assert all(target.measured > 0 for target in targets)
    figures = written["figures"]
    for name in ("sjlt", "trak", "trak float32"):
        seconds = figures["collect"][name]["seconds"]
        assert seconds["low"] > 0
        assert seconds["low"] <= seconds["median"] <= seconds["high"]
    page = (tmp_path / "collect.md").read_text()
    assert page.count("| collect, ") == len(figures["collect"]) + 1  # plus the large model
    assert "in all" in page  # the output of `gradstore plan`
    for one in figures["memory"]:
        assert 0 < one["taken"] < one["peak"]
    for one in figures["rank_correlation"].values():
        assert 0.5 < one["tracin"] <= 1
    assert (tmp_path / "collect.png").read_bytes().startswith(b"\x89PNG")
