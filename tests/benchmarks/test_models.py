from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.models import PRESETS, run


def test_it_measures_every_engine_beside_a_training_step(tmp_path: Path) -> None:
    targets = run(PRESETS["tiny"], tmp_path)
    written = json.loads((tmp_path / "models.json").read_text())
    assert [one["measured"] for one in written["targets"]] == pytest.approx(
        [t.measured for t in targets]
    )
    figures = written["figures"]
    # A down and an up level attend with 8 and 16 channels: see LoRA's two factors per projection.
    assert 0 < figures["adapters"] < figures["parameters"]
    assert figures["ratios"]["a training step"] == 1
    assert all(one > 0 for one in figures["bytes"].values())
    page = (tmp_path / "models.md").read_text()
    assert all(f"| {name} |" in page for name in figures["seconds"])
    assert (tmp_path / "models.png").read_bytes().startswith(b"\x89PNG")
