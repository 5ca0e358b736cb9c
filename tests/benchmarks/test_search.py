from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.search import PRESETS, run
from benchmarks.worlds.setting import Folders, prepare
from benchmarks.worlds.vectors import Spectrum, generated


def test_it_times_every_engine_and_tells_what_it_finds(tmp_path: Path, folders: Folders) -> None:
    preset = PRESETS["tiny"]
    targets = run(preset, tmp_path, folders)
    written = json.loads((tmp_path / "search.json").read_text())
    assert [one["measured"] for one in written["targets"]] == [t.measured for t in targets]
    figures = written["figures"]
    for store in (figures["real"], *figures["drawn"].values()):
        # In a small store nearly all samples are candidates.
        assert min(store["recall@10"].values()) >= 0.9
        assert store["memory per sample"] < 256 // 8 + 200
        for cell in store["searching"].values():
            assert {"index", "exact", "chosen", "in memory", "FAISS Flat"} <= set(cell)
            assert all(0 < one["low"] <= one["median"] <= one["high"] for one in cell.values())
    folding = figures["folding"]
    assert folding["folded"]["bytes per sample"] < folding["concatenated"]["bytes per sample"]
    peers = figures["peers"]
    assert peers["FAISS Flat"]["recall@10"] == pytest.approx(1)
    assert peers["gradstore, exact (both ends)"]["recall@10"] == pytest.approx(1)
    assert peers["hnswlib ip, ef 800"]["recall@10"] > 0.9
    page = (tmp_path / "search.md").read_text()
    assert "| 1,500 drawn | 4 |" in page
    assert (tmp_path / "search.png").stat().st_size > 1000


def test_drawn_directions_have_the_moments_of_real_ones(tmp_path: Path, folders: Folders) -> None:
    real = prepare(PRESETS["tiny"].setting, folders).store
    spectrum = Spectrum.of(real)
    store = generated(tmp_path, real, spectrum, 2000, seed=3)
    drawn = store.rows(0).direction[:, 0].astype(np.float64)
    given = real.rows(real.checkpoints - 1)
    wanted = given.direction[:, 0].astype(np.float64)
    assert np.square(drawn).sum(1).mean() == pytest.approx(np.square(wanted).sum(1).mean(), rel=0.1)
    first = spectrum.components[0] / np.linalg.norm(spectrum.components[0])
    assert np.square(drawn @ first).mean() == pytest.approx(
        np.square(wanted @ first).mean(), rel=0.15
    )
    assert set(np.unique(store.rows(0).norm)) <= set(np.unique(given.norm))
    # A second call opens the existing store.
    again = generated(tmp_path, real, spectrum, 2000, seed=3)
    assert again.location == store.location
    assert len(list(tmp_path.iterdir())) == 1
