"""Samples of text-to-image models as diffusers' scripts make them, and the rows they must have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import gradstore as gs
from gradstore.collect import Samples
from tests.support.naive import own_gradients, rows_of

EXACT = ["--events", "planned", "--timesteps", 2, "--projector", "identity", "--dtype", "float32"]
EXACT += ["--metric", "none"]


def picture(folder: Path, number: int | str) -> Image.Image:
    with Image.open(folder / f"{number}.png") as image:
        return image.copy()


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)


@torch.no_grad()
def by_script(pipeline: Any, image: Image.Image, caption: str) -> dict[str, Any]:
    """Latents and text of a sample, as `train_text_to_image.py` and `…_sdxl.py` make them."""
    vae = pipeline.vae
    latents = vae.encode(pixels(image)[None]).latent_dist.mode() * vae.config.scaling_factor

    def tokens(tokenizer: Any) -> Tensor:
        found: Tensor = tokenizer(
            caption,
            max_length=tokenizer.model_max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return found

    if not hasattr(pipeline, "text_encoder_2"):
        states = pipeline.text_encoder(tokens(pipeline.tokenizer))[0]
        return {"image": latents[0], "conditions": {"encoder_hidden_states": states[0]}}
    first = pipeline.text_encoder(tokens(pipeline.tokenizer), output_hidden_states=True)
    second = pipeline.text_encoder_2(tokens(pipeline.tokenizer_2), output_hidden_states=True)
    states = torch.cat([one.hidden_states[-2] for one in (first, second)], dim=-1)
    given = {"encoder_hidden_states": states[0], "text_embeds": second[0][0]}
    return {"image": latents[0], "conditions": given}


class _Called:
    """A denoiser called with nested conditions, and with further channels in its input."""

    def __init__(self, unet: Any) -> None:
        self._unet, self.named_parameters = unet, unet.named_parameters

    def __call__(self, noisy: Tensor, timestep: Tensor, **given: Tensor) -> Any:
        states = given.pop("encoder_hidden_states")
        if "further_channels" in given:
            noisy = torch.cat([noisy, given.pop("further_channels")], dim=1)
        return self._unet(noisy, timestep, states, added_cond_kwargs=given or None)


def require_rows(
    store: gs.Store, pipeline: Any, items: list[Any], checkpoint: int, adapters: bool
) -> None:
    count = sum("lora_" in name for name, _ in pipeline.unet.named_parameters())
    assert bool(count) == adapters
    expected = own_gradients(
        _Called(pipeline.unet),
        pipeline.scheduler,
        Samples(items, ids=store.manifest.ids),
        store,
        checkpoint=checkpoint,
        adapters=count,
    )
    found = rows_of(store, checkpoint)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
