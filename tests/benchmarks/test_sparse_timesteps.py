from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.sparse_timesteps import MEASURES, PRESETS, even, run, slot_scores, stratified
from benchmarks.worlds.setting import Folders, prepare
from query.evaluation.methods import scores


def test_it_compares_sparse_grids_with_the_full_one(tmp_path: Path, folders: Folders) -> None:
    targets = run(PRESETS["tiny"], tmp_path, folders)
    written = json.loads((tmp_path / "sparse_timesteps.json").read_text())
    assert [one["measured"] for one in written["targets"]] == [t.measured for t in targets]
    for measure in MEASURES:
        found = written["figures"][measure]
        for way in ("even", "stratified"):
            # All timesteps with all noises form the full grid.
            whole = found[way]["2"]["6"]
            assert whole["spearman"]["mean"] == pytest.approx(1)
            assert whole["overlap"]["mean"] == 1
            for counts in found[way].values():
                assert all(-1 <= one["spearman"]["mean"] <= 1.001 for one in counts.values())
    assert "| 6 × 2 | 1/1 |" in (tmp_path / "sparse_timesteps.md").read_text()


@pytest.mark.parametrize("measure", ["tracin", "retrac", "calibrated"])
def test_the_mean_over_slots_is_the_score(folders: Folders, measure: str) -> None:
    world = prepare(PRESETS["tiny"].setting, folders)
    found = slot_scores(world.store, world.queries, measure).mean(axis=1)
    expected = scores(world.store, world.queries, measure)
    assert found == pytest.approx(expected, abs=1e-4 * float(np.abs(expected).max()))


def test_places_lie_in_their_parts() -> None:
    assert even(40, 40).tolist() == list(range(40))
    assert even(40, 2).tolist() == [10, 30]
    assert even(6, 1).tolist() == [3]
    for seed in range(20):
        assert (stratified(40, 4, seed) // 10).tolist() == [0, 1, 2, 3]
    assert len({tuple(stratified(40, 4, seed)) for seed in range(20)}) > 10
