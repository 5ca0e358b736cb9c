"""Latents: what a diffusion model sees of images behind an autoencoder.

A small `AutoencoderKL` is trained on the images, as latent diffusion does (arXiv 2112.10752), and
kept in the cache folder under a hash of its inputs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F  # noqa: N812

from benchmarks.worlds.setting import digest
from gradstore.collect import Samples
from gradstore.progress import progress

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

CHANNELS: Final = 4
# Images that are encoded at once.
_AT_ONCE: Final = 64


@dataclass(frozen=True)
class Coding:
    """An autoencoder's training.

    Attributes:
        widths: channels of its levels; each but the first halves the side of an image.
        steps: training steps of 32 images.
        seed: seed of weights, order and posteriors.
    """

    widths: tuple[int, ...]
    steps: int
    seed: int = 0

    def side(self, size: int) -> int:
        """Side of the latents of images of `size` × `size`."""
        return size >> (len(self.widths) - 1)


def autoencoder(coding: Coding, samples: Samples, cache: Path) -> AutoencoderKL:
    """An autoencoder trained on images by their absolute error and a little of the prior."""
    folder = cache / f"vae-{digest(asdict(coding), samples.manifest.digests)}"
    if not folder.exists():
        model = _trained(coding, _stacked(samples))
        writing = folder.with_name(f".{folder.name}.writing")
        model.save_pretrained(writing)
        writing.rename(folder)
    # Read anew also after training, so that both ways give the same weights.
    return AutoencoderKL.from_pretrained(folder).eval()


def encoded(model: AutoencoderKL, samples: Samples) -> Samples:
    """Latents of images, the mean of each posterior, scaled; ids and labels stay."""
    with torch.no_grad():
        parts = [
            model.encode(some).latent_dist.mean * model.config["scaling_factor"]
            for some in torch.split(_stacked(samples), _AT_ONCE)
        ]
    labels = samples.manifest.metadata["label"]
    return Samples(list(zip(torch.cat(parts), labels, strict=True)), ids=samples.ids)


def error(model: AutoencoderKL, samples: Samples) -> float:
    """Mean absolute error of the decoded images; their values are −1 … 1."""
    images = _stacked(samples)
    with torch.no_grad():
        found = [
            (model.decode(model.encode(some).latent_dist.mean).sample - some).abs().mean()
            for some in torch.split(images, _AT_ONCE)
        ]
    return float(torch.stack(found).mean())


def _stacked(samples: Samples) -> Tensor:
    return torch.stack([samples[row].tensor for row in range(len(samples))])


def _trained(coding: Coding, images: Tensor) -> AutoencoderKL:
    torch.manual_seed(coding.seed)
    levels = len(coding.widths)
    options: dict[str, Any] = {
        "block_out_channels": coding.widths,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "latent_channels": CHANNELS,
        "norm_num_groups": 8,
        "sample_size": images.shape[-1],
    }
    model = AutoencoderKL(**options).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    generator = np.random.Generator(np.random.Philox(key=coding.seed))
    with progress(coding.steps, "training an autoencoder", "steps") as bar:
        for step in range(coding.steps):
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * (1 - step / coding.steps)
            some = images[generator.integers(0, len(images), 32)]
            posterior = model.encode(some).latent_dist
            decoded = model.decode(posterior.sample()).sample
            loss = (
                F.l1_loss(decoded, some) + 1e-4 * posterior.kl().mean() / posterior.mean[0].numel()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bar.update(1)
    model.eval()
    with torch.no_grad():
        spread = torch.cat(
            [model.encode(s).latent_dist.mean for s in torch.split(images, _AT_ONCE)]
        ).std()
    model.register_to_config(scaling_factor=1 / float(spread))  # latents of unit variance
    return model
