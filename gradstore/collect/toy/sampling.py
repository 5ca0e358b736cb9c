"""Generates images from a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers import DDIMPipeline, UNet2DModel

from gradstore.collect import devices
from gradstore.collect.models.encoders import Encoders, autoencoder_folder
from gradstore.collect.models.families import family_of, further_input
from gradstore.collect.models.loaders import loader_of
from gradstore.errors import CheckpointError
from gradstore.progress import progress

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from gradstore.collect.models.loading import Checkpoint
    from gradstore.collect.models.protocol import Loader

_BATCH = 32
_OWN_CODE = "Generate images with your own code and query with their folder."


def generate(
    checkpoint: str | Path | Loader,
    count: int,
    *,
    prompt: str | None = None,
    seed: int = 0,
    steps: int = 50,
    device: str | None = None,
) -> list[Image]:
    """Generate images from a checkpoint: by DDIM, or by a prompt with its pipeline.

    With a prompt, image i is that of seed `seed + i`, whatever the count; the pipeline draws with
    its own scheduler and settings.

    Args:
        checkpoint: its folder, or a loader, of whose checkpoints the last is taken.
        count: number of images.
        prompt: what to draw, for a text-to-image model.
        seed: seed of the starting noise.
        steps: denoising steps.
        device: torch device; by default cuda if available.

    Raises:
        CheckpointError: if the checkpoint cannot be loaded or needs other conditions.

    Examples:
        >>> import gradstore as gs
        >>> images = gs.generate("run/checkpoints/epoch-02", 2, steps=5)
        >>> [image.size for image in images]
        [(8, 8), (8, 8)]
    """
    loader = loader_of(checkpoint, exact=True)
    loaded = loader.load(loader.folders[-1])
    model, scheduler = loaded.model, loaded.scheduler
    if further_input(model) is not None:
        raise CheckpointError(
            f"checkpoint {loaded.path} edits or inpaints: it draws from a picture, and not from a "
            f"seed or a prompt alone. {_OWN_CODE}"
        )
    if prompt is not None:
        return _drawn(loader, loaded, count, prompt, seed=seed, steps=steps, device=device)
    if family_of(model) is not None:
        raise CheckpointError(
            f"checkpoint {loaded.path} is a text-to-image model: say what to draw with --prompt "
            "(in Python, prompt=)."
        )
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


@torch.no_grad()
def _drawn(
    loader: Loader,
    loaded: Checkpoint,
    count: int,
    prompt: str,
    *,
    seed: int,
    steps: int,
    device: str | None,
) -> list[Image]:
    spec, place = loader.spec(), devices.choose(device)
    base = spec.base if spec is not None else None
    vae = autoencoder_folder(loaded.path, base)
    if family_of(loaded.model) is None or vae is None or loaded.scheduler is None:
        raise CheckpointError(
            f"checkpoint {loaded.path} cannot draw a prompt: it is no text-to-image model with a "
            f"vae/ and a scheduler/ in it, beside it or in --base. {_OWN_CODE}"
        )
    encoders = Encoders(vae, loaded.path, base, loaded.model, place)
    pipeline = encoders.pipeline(loaded.model.to(place), loaded.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    images: list[Image] = []
    with (
        progress(count, "generating", "images") as bar,
        torch.autocast(place.type, torch.bfloat16, enabled=loaded.rounded),
    ):
        for number in range(count):
            generator = torch.Generator().manual_seed(seed + number)
            found = pipeline(prompt, generator=generator, num_inference_steps=steps)
            images += found.images
            bar.update(1)
    return images
