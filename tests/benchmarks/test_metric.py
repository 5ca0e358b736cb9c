from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.metric import METRICS, PRESETS, alike, run, split
from benchmarks.worlds.setting import Folders


def test_shares_of_rows_are_those_that_made_them() -> None:
    generator = np.random.default_rng(0)
    samples, timesteps, dim = 200, 20, 500

    def noise(*shape: int) -> np.ndarray:
        drawn: np.ndarray = generator.standard_normal((*shape, dim)) / dim**0.5
        return drawn

    # Squared lengths 2, 1 and 5, of 8 in all.
    rows = 2**0.5 * noise() + noise(samples)[:, None] + 5**0.5 * noise(samples, timesteps)
    found = split(rows)
    assert found["common"] == pytest.approx(2 / 8, abs=0.03)
    assert found["own"] == pytest.approx(1 / 8, abs=0.01)
    assert found["event"] == pytest.approx(5 / 8, abs=0.03)
    assert found["common of a mean"] == pytest.approx(2 / (2 + 1 + 5 / timesteps), abs=0.05)


def test_lists_of_queries_are_compared_with_each_other() -> None:
    same = np.array([1.0, 2, 3], np.float32)
    assert alike(np.stack([same, 2 * same, -same])) == pytest.approx([0, 0, -1])


def test_every_metric_has_its_figures(tmp_path: Path, folders: Folders) -> None:
    targets = run(PRESETS["tiny"], tmp_path, folders)
    written = json.loads((tmp_path / "metric.json").read_text())
    assert [one["measured"] for one in written["targets"]] == [t.measured for t in targets]
    rows = written["figures"]["digits"]["rows"]
    assert list(rows) == list(METRICS)
    for one in rows.values():
        assert sum(one["shares"][name] for name in ("common", "own", "event")) == pytest.approx(1)
        assert np.mean(one["norm"]) == pytest.approx(1)
    assert (tmp_path / "metric.png").read_bytes().startswith(b"\x89PNG")
