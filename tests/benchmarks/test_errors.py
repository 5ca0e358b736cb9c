from __future__ import annotations

import json
from pathlib import Path

from benchmarks.errors import MEASURES, METRICS, PRESETS, run
from benchmarks.worlds.setting import Folders


def test_every_measure_has_its_coverage(tmp_path: Path, folders: Folders) -> None:
    preset = PRESETS["tiny"]
    targets = run(preset, tmp_path, folders)
    written = json.loads((tmp_path / "errors.json").read_text())
    assert [one["measured"] for one in written["targets"]] == [t.measured for t in targets]
    names = [f"digits, {measure}, {metric}" for metric in METRICS for measure in MEASURES]
    assert list(written["figures"]) == names
    for one in written["figures"].values():
        assert 0 <= one["coverage"] <= 1
        assert 0 <= one["rank coverage"] <= 1
        assert one["inflation"] > 0
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")
