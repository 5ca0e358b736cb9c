from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from benchmarks.outliers import MEASURES, PRESETS, average_precision, run
from benchmarks.worlds.setting import Folders
from query.evaluation.figures import auroc


def test_it_measures_whom_each_measure_names(tmp_path: Path, folders: Folders) -> None:
    targets = run(PRESETS["tiny"], tmp_path, folders)
    written = json.loads((tmp_path / "outliers.json").read_text())
    assert [one["measured"] for one in written["targets"]] == pytest.approx(
        [t.measured for t in targets], nan_ok=True
    )
    assert list(written["figures"]["measures"]) == list(MEASURES)
    for one in written["figures"]["measures"].values():
        for side in ("zeros of plane queries", "zeros of zero queries"):
            for cell in one[side].values():
                assert 0 <= cell["low"] <= cell["mean"] <= cell["high"] <= 1
                assert len(cell["runs"]) == 2
        assert 0 < one["average precision of zeros"]["mean"] <= 1
    for one in written["figures"]["detectors"].values():
        assert 0 <= one["auroc"]["mean"] <= 1
    page = (tmp_path / "outliers.md").read_text()
    assert page.count("calibrated\\|retrac") == 1
    for name in ("outliers.png", "outliers-proponents.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_precision_and_auroc_are_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    found = generator.normal(size=(3, 40)).astype(np.float32)
    hit = generator.random(40) < 0.3
    assert average_precision(found, hit) == pytest.approx(
        [average_precision_score(hit, row) for row in found]
    )
    tied = np.round(found)
    assert auroc(list(tied), hit).runs == pytest.approx([roc_auc_score(hit, row) for row in tied])
