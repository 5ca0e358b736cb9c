from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks.lds import PRESETS, REMOVED_BY, datamodeling_score, noise_ceiling, run
from benchmarks.worlds.setting import Folders


def test_it_retrains_and_compares(tmp_path: Path, folders: Folders) -> None:
    preset = PRESETS["tiny"]
    targets = run(preset, tmp_path, folders)
    written = json.loads((tmp_path / "lds.json").read_text())
    assert [one["measured"] for one in written["targets"]] == [t.measured for t in targets]
    figures = written["figures"]
    assert {"tracin", "retrac, planned", "D-TRAK", "raw pixels", "random"} <= set(figures["lds"])
    for one in figures["lds"].values():
        for group in ("held out", "generated"):
            assert -1.001 <= one[group]["low"] <= one[group]["high"] <= 1.001
    assert set(figures["removal"]) == {"random", "another seed", *REMOVED_BY}
    for one in figures["removal"].values():
        assert 0 <= one["image change"]["mean"] <= 1
    # 4 halves, the whole set, a random removal and one removal by each method, twice.
    assert written["inputs"]["training_runs"] == 2 * (4 + 1 + 1 + len(REMOVED_BY))
    assert "ceiling" in (tmp_path / "lds.md").read_text()
    again = json.loads((tmp_path / "lds.json").read_text())
    run(preset, tmp_path, folders)  # uses the cached results
    assert json.loads((tmp_path / "lds.json").read_text()) == again


def test_the_score_is_the_mean_rank_correlation_with_the_losses_fall() -> None:
    generator = np.random.default_rng(0)
    predicted, truth = generator.normal(size=(5, 9)), generator.normal(size=(2, 5, 9))
    rows = np.array([0, 2, 3])
    found = datamodeling_score(predicted, truth, rows)
    expected = [spearmanr(predicted[row], -truth[:, row].mean(0)).statistic for row in rows]
    assert found.mean == pytest.approx(np.mean(expected))
    assert found.low <= found.mean <= found.high
    perfect = datamodeling_score(-truth.mean(0), truth, rows)
    assert [perfect.low, perfect.high] == pytest.approx([1, 1])


def test_the_ceiling_is_that_of_what_seeds_share() -> None:
    generator = np.random.default_rng(0)
    signal = generator.normal(size=(20, 400))
    truth = signal + generator.normal(size=(2, 20, 400))
    found = noise_ceiling(truth, np.arange(20))
    assert found["between seeds"] == pytest.approx(0.5, abs=0.05)
    # The correlation of the mean of two seeds with the signal.
    best = [spearmanr(a, b).statistic for a, b in zip(truth.mean(0), signal, strict=True)]
    assert found["ceiling"] == pytest.approx(np.mean(best), abs=0.03)
