"""Generates images from a checkpoint by DDIM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers import DDIMPipeline, UNet2DModel

from gradstore.collect import devices
from gradstore.collect.models.loaders import loader_of
from gradstore.errors import CheckpointError
from gradstore.progress import progress

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from gradstore.collect.models.protocol import Loader

_BATCH = 32
_OWN_CODE = "Generate images with your own code and query with their folder."


def generate(
    checkpoint: str | Path | Loader,
    count: int,
    *,
    seed: int = 0,
    steps: int = 50,
    device: str | None = None,
) -> list[Image]:
    """Generate images from an unconditional checkpoint by DDIM.

    Args:
        checkpoint: its folder, or a loader, of whose checkpoints the last is taken.
        count: number of images.
        seed: seed of the starting noise.
        steps: denoising steps.
        device: torch device; by default cuda if available.

    Raises:
        CheckpointError: if the checkpoint cannot be loaded or needs conditions.

    Examples:
        >>> import gradstore as gs
        >>> images = gs.generate("run/checkpoints/epoch-02", 2, steps=5)
        >>> [image.size for image in images]
        [(8, 8), (8, 8)]
    """
    loader = loader_of(checkpoint, exact=True)
    loaded = loader.load(loader.folders[-1])
    model, scheduler = loaded.model, loaded.scheduler
    if not isinstance(model, UNet2DModel) or model.config.sample_size is None or not scheduler:
        raise CheckpointError(
            f"checkpoint {loaded.path} is not a UNet2DModel with a scheduler and a sample_size. "
            f"{_OWN_CODE}"
        )
    if model.config.num_class_embeds is not None:
        raise CheckpointError(f"checkpoint {loaded.path} is conditioned on classes. {_OWN_CODE}")
    pipeline = DDIMPipeline(model, scheduler)
    pipeline.to(devices.choose(device))
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    images: list[Image] = []
    with progress(count, "generating", "images") as bar:
        while len(images) < count:
            batch = min(_BATCH, count - len(images))
            output = pipeline(batch_size=batch, generator=generator, num_inference_steps=steps)
            images += output.images
            bar.update(batch)
    return images
