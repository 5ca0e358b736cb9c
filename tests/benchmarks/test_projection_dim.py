from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.projection_dim import (
    DENSE,
    MEASURES,
    PRESETS,
    SPARSE,
    _gradients,
    _smallest,
    grouped,
    project,
    run,
    smaller,
)
from benchmarks.worlds.setting import Folders


def test_it_compares_projected_with_exact_scores(tmp_path: Path, folders: Folders) -> None:
    targets = run(PRESETS["tiny"], tmp_path, folders)
    written = json.loads((tmp_path / "projection_dim.json").read_text())
    assert [one["measured"] for one in written["targets"]] == [t.measured for t in targets]
    figures = written["figures"]["projectors"]
    assert list(figures) == [*DENSE, *SPARSE]
    for name, one in figures.items():
        assert list(one["dims"]) == (["16", "64"] if name in DENSE else ["16", "64", "256"])
        for measure in MEASURES:
            means = [found[measure]["spearman"]["mean"] for found in one["dims"].values()]
            assert -1 <= min(means) <= max(means) <= 1
            assert means[-1] > 0
    assert (tmp_path / "projection_dim.png").read_bytes().startswith(b"\x89PNG")


def test_exact_scores_are_inner_products(folders: Folders) -> None:
    gradients = _gradients(PRESETS["tiny"], folders)
    assert torch.linalg.vector_norm(gradients.unit, dim=1).numpy() == pytest.approx(1, rel=1e-4)
    rows = gradients.rows().numpy()
    for measure in MEASURES:
        expected = gradients.exact(measure)
        assert gradients.scores(rows, measure) == pytest.approx(expected, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", SPARSE)
def test_a_folded_sketch_is_the_smaller_one(name: str) -> None:
    rows = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    large = project(name, rows, 64, 5, "float32")
    assert smaller(name, large, 16) == pytest.approx(
        project(name, rows, 16, 5, "float32"), abs=1e-4
    )


def test_groups_are_of_equal_size_and_keep_inner_products() -> None:
    buckets, signs = grouped(1000, 8, 0)
    assert torch.bincount(buckets).tolist() == [125] * 8
    assert set(signs.tolist()) == {-1.0, 1.0}
    rows = torch.randn(2, 500, generator=torch.Generator().manual_seed(0))
    rows[1] += rows[0]
    found = [project(SPARSE[1], rows, 64, seed, "float32") for seed in range(200)]
    estimates = [float(one[0] @ one[1]) for one in found]
    true = float(rows[0] @ rows[1])
    assert abs(np.mean(estimates) - true) < 4 * np.std(estimates) / np.sqrt(200)


def test_the_smallest_dimension_holds_for_all_larger_ones() -> None:
    def dims(*means: float) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
        return {str(2**n): {"m": {"spearman": {"mean": one}}} for n, one in enumerate(means)}

    assert _smallest(dims(0.5, 0.96, 0.9, 0.97, 0.99), "m", 0.95) == 8
    assert _smallest(dims(0.5, 0.6), "m", 0.95) is None
