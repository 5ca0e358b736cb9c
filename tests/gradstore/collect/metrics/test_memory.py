"""The memory of fits is foretold, and refused before any work where there is too little."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

import gradstore as gs
from gradstore.collect import DiffusionLoss
from gradstore.collect.engines import StreamingEngine
from gradstore.collect.engines.allocated import peak_bytes
from gradstore.collect.metrics import Fitting, from_spec
from gradstore.collect.metrics.whitening import fitting_nbytes
from gradstore.collect.objectives.protocol import Batch
from gradstore.errors import ConfigError
from gradstore.store.format.spec import MetricSpec

SCHEDULER = DDIMScheduler()


def wide() -> UNet2DModel:
    """A model whose factors are large beside its activations."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=4, in_channels=1, out_channels=1, layers_per_block=1,
        block_out_channels=(256,), down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",), norm_num_groups=8,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("name", ["fisher", "kfac", "ekfac"])
def test_the_memory_of_a_fit_is_foretold(name: str) -> None:
    model, objective = wide(), DiffusionLoss(SCHEDULER, "l2")
    metric = from_spec(MetricSpec.model_validate({"metric": name}))
    assert metric is not None
    images = torch.randn(2, 1, 4, 4)
    batch = Batch(images, torch.tensor([10, 600]), torch.randn(2, 1, 1, 4, 4), {})
    engine = StreamingEngine(model, objective)
    device = torch.device("cpu")
    fitting = Fitting(Path(), model, objective, StreamingEngine, lambda: [batch], device)
    alone = peak_bytes(partial(engine, batch, lambda *_: None), device)
    held = peak_bytes(partial(metric.fit, fitting), device)
    told = fitting_nbytes(model, layerwise=metric.layerwise)
    assert 0.6 * (told + alone) < held < 1.1 * (told + alone)


def test_too_little_memory_for_a_fit_is_told_before_any_work(tmp_path: Path) -> None:
    checkpoint = tmp_path / "model"
    DDIMPipeline(wide(), SCHEDULER).save_pretrained(checkpoint)
    images = torch.randn(6, 1, 4, 4)
    make = partial(
        gs.collect, images, checkpoint, objective="l2", etas=[1.0],
        projector=gs.ProjectorSpec(projector="sjlt", proj_dim=64),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"to fit metric kfac takes .* Give --memory "):
        make(tmp_path / "a.gradstore", memory=0.3)
    assert not (tmp_path / "a.gradstore").exists()
    make(tmp_path / "b.gradstore", memory=0.3, metric="none")
    store = make(tmp_path / "a.gradstore", memory=1)
    more = gs.Samples(torch.randn(2, 1, 4, 4), ids=["x", "y"])
    assert (
        len(gs.append(more, store, checkpoints=[checkpoint], memory=0.3)) == 8
    )  # nothing is fitted
