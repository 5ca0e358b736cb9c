from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import skew

from benchmarks.generally_influential import (
    MEASURES,
    PRESETS,
    _counts,
    _general,
    _halves,
    _skewness,
    run,
)
from benchmarks.worlds.setting import Folders, prepare
from indexer import ExactEngine, Features, measure_of
from query import hubness, search


def test_it_counts_who_is_influential_for_everyone(tmp_path: Path, folders: Folders) -> None:
    targets = run(PRESETS["tiny"], tmp_path, folders)
    written = json.loads((tmp_path / "generally_influential.json").read_text())
    assert [one["measured"] for one in written["targets"]] == [t.measured for t in targets]
    assert list(written["figures"]["measures"]) == list(MEASURES)
    for one in written["figures"]["measures"].values():
        assert 0 < one["distinctness"]["mean"] <= 1
        assert 0 < one["largest"]["mean"] <= 1
        assert 0 <= one["generally influential"]["mean"] <= 46
        assert -1 <= one["with norm"]["mean"] <= 1
    assert "random lists" in (tmp_path / "generally_influential.md").read_text()
    # Equals the library's own result for the same queries.
    preset = PRESETS["tiny"]
    world = prepare(preset.setting, folders)
    engine = ExactEngine(world.store, Features.of(world.store, measure_of("tracin")))
    hubs = hubness(search(engine, world.queries, preset.k))
    found = written["figures"]["measures"]["tracin"]
    assert found["distinctness"]["runs"][0] == pytest.approx(hubs.distinctness)
    assert found["with norm"]["runs"][0] == pytest.approx(hubs.with_norm)


def test_counts_of_known_lists() -> None:
    found = np.zeros((20, 6), np.float32)
    found[:, 0] = 2  # a proponent of every query
    found[np.arange(20), 1 + np.arange(20) % 5] = 1  # proponents of four queries each
    assert _counts(found, 2).tolist() == [20, 4, 4, 4, 4, 4]
    assert _general(found, 2) == 6
    assert _general(found, 1) == 1
    assert _skewness(found, 2) == pytest.approx(skew([20, 4, 4, 4, 4, 4]))


def test_halves_have_the_spread_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(size=400)
    found = _halves([lambda rows: float(values[rows].mean())], 400)
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 / 20, rel=0.15)
