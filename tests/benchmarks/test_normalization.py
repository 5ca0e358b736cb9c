from __future__ import annotations

import json
from pathlib import Path

from benchmarks.normalization import CRITERIA, MEASURES, NORM, PRESETS, run
from benchmarks.worlds.setting import Folders


def test_every_measure_has_every_figure(tmp_path: Path, folders: Folders) -> None:
    targets = run(PRESETS["tiny"], tmp_path, folders)
    written = json.loads((tmp_path / "normalization.json").read_text())
    assert [one["measured"] for one in written["targets"]] == [t.measured for t in targets]
    measures = written["figures"]["measures"]
    assert list(measures) == [*MEASURES, NORM]
    known = [name for name in CRITERIA if not name.startswith("cifar2")]
    for one in measures.values():
        assert list(one) == known
        for criterion, figure in one.items():
            least = -1.001 if criterion.endswith("LDS") else 0
            assert least <= figure["low"] <= figure["high"] <= 1.001
    # The same list for each of four plane queries.
    assert measures[NORM]["distinctness"]["mean"] == 0.25
    assert list(written["figures"]["best"]) == known
    assert (tmp_path / "normalization.png").read_bytes().startswith(b"\x89PNG")
