from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.latents import METHODS, PRESETS, run
from benchmarks.worlds.latents import Coding, autoencoder, encoded, error
from benchmarks.worlds.setting import Folders, images_of


def test_it_compares_pixels_and_latents(tmp_path: Path, folders: Folders) -> None:
    targets = run(PRESETS["tiny"], tmp_path, folders)
    written = json.loads((tmp_path / "latents.json").read_text())
    assert [one["measured"] for one in written["targets"]] == pytest.approx(
        [t.measured for t in targets]
    )
    for kind in ("pixels", "latents"):
        own = written["figures"][kind]
        assert list(own["measures"]) == list(METHODS)
        assert all(
            0 < one["average precision of zeros"]["mean"] <= 1 for one in own["measures"].values()
        )
        assert all(-1 <= one <= 1 for runs in own["norm with timestep"].values() for one in runs)
    assert (tmp_path / "latents.png").read_bytes().startswith(b"\x89PNG")


def test_latents_have_unit_variance_and_decode(tmp_path: Path, folders: Folders) -> None:
    images = images_of(folders, {"plane": 40, "zero": 6}, "train", 16)
    untrained = autoencoder(Coding((8, 8), 1), images, tmp_path)
    model = autoencoder(Coding((8, 8), 80), images, tmp_path)
    assert error(model, images) < 0.8 * error(untrained, images)
    latents = encoded(model, images)
    assert latents.ids == images.ids
    assert latents.manifest.metadata["label"] == images.manifest.metadata["label"]
    values = np.stack([latents[row].tensor.numpy() for row in range(len(latents))])
    assert values.shape == (46, 4, 8, 8)
    assert values.std() == pytest.approx(1, rel=0.01)
