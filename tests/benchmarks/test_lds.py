from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.lds import METRICS, PRESETS, REMOVED_BY, _together, run
from benchmarks.worlds.setting import Folders


def test_it_retrains_and_compares(tmp_path: Path, folders: Folders) -> None:
    preset = PRESETS["tiny"]
    targets = run(preset, tmp_path, folders)
    written = json.loads((tmp_path / "lds.json").read_text())
    assert [one["measured"] for one in written["targets"]] == [t.measured for t in targets]
    figures = written["figures"]["digits"]
    wanted = {"tracin", "retrac, planned", "D-TRAK", "pixels, kernel", "random"}
    assert wanted | {f"retrac, {metric}" for metric in METRICS} <= set(figures["methods"])
    for one in figures["methods"].values():
        for column in ("held out", "held out, exponential", "generated", "choosing", "reported"):
            assert -1.001 <= one[column]["low"] <= one[column]["high"] <= 1.001
        assert 0 <= one["label share"]["mean"] <= 1
    assert len(figures["methods"]["tracin"]["held out"]["runs"]) == preset.seeds
    assert set(figures["removal"]) == {"random", "another seed", *REMOVED_BY}
    for one in figures["removal"].values():
        assert 0 <= one["image change"]["mean"] <= 1
    # Each set was trained on twice: 4 halves, the whole set, and sets without some samples, of
    # which two methods may name the same.
    (folder,) = folders.cache.glob("lds-digits-*")
    trained = len(list(folder.glob("*/epoch-0002")))
    assert 2 * (4 + 1 + 1) < trained <= 2 * (4 + 1 + 1 + len(REMOVED_BY))
    assert "ceiling" in (tmp_path / "lds.md").read_text()
    run(preset, tmp_path, folders)  # uses the cached results
    assert json.loads((tmp_path / "lds.json").read_text()) == written
    assert len(list(folder.glob("*/epoch-0002"))) == trained


def test_lists_of_several_models_count_alike() -> None:
    runs = np.array([[[1.0, 2, 3]], [[100, 300, 200]]], np.float32)
    found = _together(runs)
    assert found.shape == (1, 1, 3)
    step = (3 / 2) ** 0.5
    assert found[0, 0] == pytest.approx([-step, step / 2, step / 2])
