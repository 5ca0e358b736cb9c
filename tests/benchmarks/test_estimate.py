from __future__ import annotations

import json
from typing import TYPE_CHECKING

from benchmarks.estimate import PRESETS, run

if TYPE_CHECKING:
    from pathlib import Path


def test_it_compares_what_plan_predicts_with_what_collecting_takes(tmp_path: Path) -> None:
    targets = run(PRESETS["tiny"], tmp_path)
    assert len(targets) == 4
    assert all(target.measured > 0 for target in targets)
    figures = json.loads((tmp_path / "estimate.json").read_text())["figures"]
    for projector in ("sjlt", "trak"):
        assert figures[projector]["planning"]["median"] > 0
    page = (tmp_path / "estimate.md").read_text()
    assert "| sjlt |" in page
    assert "| trak |" in page
