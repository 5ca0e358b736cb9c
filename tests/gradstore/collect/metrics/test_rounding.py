"""What rounding leaves of a zero gradient is no row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradstore as gs
from gradstore.collect.metrics.rounding import is_rounding, rounding_floor
from tests.support.worlds import NAMES, images, save_checkpoint, unet


def test_what_is_rounding() -> None:
    whole = [torch.ones(600), torch.ones(20, 20)]
    plain, cast = (rounding_floor(whole, name) for name in ("float32", "bfloat16"))
    assert is_rounding(torch.full((10,), 4e-16), plain)
    assert not is_rounding(torch.full((10,), 1e-4), plain)
    assert not is_rounding(torch.full((10,), torch.nan), plain)
    assert is_rounding(torch.zeros(10), rounding_floor([torch.zeros(10)], "float32"))
    # bfloat16 leaves more.
    assert is_rounding(torch.full((10,), 1e-8), cast)
    assert not is_rounding(torch.full((10,), 1e-8), plain)


@pytest.mark.parametrize("metric", ["kfac", "ekfac"])
def test_rows_do_not_depend_on_how_many_are_computed_at_once(tmp_path: Path, metric: str) -> None:
    """A norm of one channel takes away the shift that the time's embedding adds before it."""
    model = unet(
        0,
        block_out_channels=(2, 2),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    )
    checkpoint = save_checkpoint(tmp_path / "epoch-1", model=model)
    samples = gs.Samples(images(7), ids=NAMES)
    options: dict[str, Any] = {"metric": metric, "projector": "identity", "dtype": "float32"}
    stores = [
        gs.collect(
            samples, [checkpoint], tmp_path / f"{size}.gradstore", batch_size=size, **options
        )
        for size in (1, 8)
    ]
    found, expected = (store.rows(0).direction for store in stores)
    still = [
        name.startswith("time_embedding") or ".time_emb_proj." in name
        for name, parameter in model.named_parameters()
        for _ in range(parameter.numel())
    ]
    assert 10 < sum(still) < len(still) / 2
    assert not expected[..., still].any()
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-3)
