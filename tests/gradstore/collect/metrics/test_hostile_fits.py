"""The file of a fit is held to the size of its model's map before it is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from diffusers import UNet2DModel

import gradstore as gs
from gradstore.collect.metrics.whitening import most_bytes, neutral
from gradstore.errors import StoreError
from tests.support.memory import bounded
from tests.support.worlds import World


@pytest.mark.parametrize("metric", ["fisher", "kfac"])
def test_a_fit_that_is_too_large_is_not_read(world: World, tmp_path: Path, metric: str) -> None:
    store = gs.collect(
        world.train, world.checkpoints[:1], tmp_path / "a.gradstore", metric=metric,
        events="planned", projector="sjlt", engine="streaming",
    )  # fmt: skip
    (file,) = (store.path / "metrics").iterdir()
    model = UNet2DModel.from_pretrained(world.checkpoints[0] / "unet")
    largest = len(neutral(model, layerwise=True).content())
    assert file.stat().st_size <= largest <= most_bytes(model) < 2 * largest
    for size in (most_bytes(model) + 1, 2**40):  # a hole
        os.truncate(file, size)
        with bounded(50 * 2**20), pytest.raises(StoreError, match=f"it has {size:,} bytes"):
            gs.collect_queries(store, world.queries, tmp_path / "asked.gradstore")
    os.truncate(file, 2**30)
    with bounded(50 * 2**20), pytest.raises(StoreError, match="has changed"):
        list(gs.verify(store))
