"""Families of text-to-image pipelines: how each encodes captions and tells sizes to its denoiser.

Captions are encoded by the pipeline class of diffusers itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from inspect import signature
from typing import TYPE_CHECKING, Any, Final

import torch

from gradstore.collect.models.folders import part_folder, read_config

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

# What Flux was distilled at, and what diffusers' scripts tell it in training.
_GUIDANCE: Final = 3.5


@dataclass(frozen=True)
class Family:
    """How a family of pipelines encodes captions.

    Attributes:
        pipeline: name of the class of diffusers.
        texts: number of text encoders.
        encode: the denoiser's conditions of a caption, `[1, …]` each, by the pipeline.
        sizes: its conditions of a picture's geometry (see `Sample`), without the first axis.
        rest: further arguments of the class.
        denoiser: name of the denoiser in the pipeline.
    """

    pipeline: str
    texts: int
    encode: Callable[[Any, str], dict[str, Tensor]]
    sizes: Callable[[Any, Sequence[int]], dict[str, Tensor]]
    rest: Mapping[str, Any]
    denoiser: str = "unet"


def _sd(pipeline: Any, caption: str) -> dict[str, Tensor]:
    found, _ = pipeline.encode_prompt(caption, pipeline.text_encoder.device, 1, False)
    return {"encoder_hidden_states": found}


def _sdxl(pipeline: Any, caption: str) -> dict[str, Tensor]:
    found, _, pooled, _ = pipeline.encode_prompt(
        caption, device=pipeline.text_encoder.device, do_classifier_free_guidance=False
    )
    return {"encoder_hidden_states": found, "text_embeds": pooled}


def _sd3(pipeline: Any, caption: str) -> dict[str, Tensor]:
    found, _, pooled, _ = pipeline.encode_prompt(
        caption, None, None, device=pipeline.text_encoder.device, do_classifier_free_guidance=False
    )
    return {"encoder_hidden_states": found, "pooled_projections": pooled}


def _flux(pipeline: Any, caption: str) -> dict[str, Tensor]:
    found, pooled, _ = pipeline.encode_prompt(caption, device=pipeline.text_encoder.device)
    return {"encoder_hidden_states": found, "pooled_projections": pooled}


def _pixart(pipeline: Any, caption: str) -> dict[str, Tensor]:
    found, mask, _, _ = pipeline.encode_prompt(
        caption, device=pipeline.text_encoder.device, do_classifier_free_guidance=False
    )
    return {"encoder_hidden_states": found, "encoder_attention_mask": mask}


def _no_sizes(model: Any, geometry: Sequence[int]) -> dict[str, Tensor]:  # noqa: ARG001
    return {}


def _sdxl_sizes(model: Any, geometry: Sequence[int]) -> dict[str, Tensor]:  # noqa: ARG001
    return {"time_ids": torch.tensor(geometry, dtype=torch.float32)}


def _flux_sizes(model: Any, geometry: Sequence[int]) -> dict[str, Tensor]:  # noqa: ARG001
    return {"guidance": torch.tensor(_GUIDANCE)} if model.config.guidance_embeds else {}


def _pixart_sizes(model: Any, geometry: Sequence[int]) -> dict[str, Tensor]:
    if not model.use_additional_conditions:
        return {}
    height, width = geometry[-2:]
    return {
        "resolution": torch.tensor([height, width], dtype=torch.float32),
        "aspect_ratio": torch.tensor([height / width]),
    }


_UNSAFE: Final = {
    "safety_checker": None,
    "feature_extractor": None,
    "requires_safety_checker": False,
}
_SD: Final = Family("StableDiffusionPipeline", 1, _sd, _no_sizes, _UNSAFE)
_SDXL: Final = Family(
    "StableDiffusionXLPipeline", 2, _sdxl, _sdxl_sizes, {"add_watermarker": False}
)
_PIXART: Final = Family("PixArtSigmaPipeline", 1, _pixart, _pixart_sizes, {}, "transformer")
_TRANSFORMERS: Final = {
    "SD3Transformer2DModel": Family(
        "StableDiffusion3Pipeline", 3, _sd3, _no_sizes, {}, "transformer"
    ),
    "FluxTransformer2DModel": Family("FluxPipeline", 2, _flux, _flux_sizes, {}, "transformer"),
    "PixArtTransformer2DModel": _PIXART,
}


def family_of(model: Any) -> Family | None:
    """The family of a denoiser whose captions are encoded here; None if it is of none."""
    name = type(model).__name__
    if name != "UNet2DConditionModel":
        return _TRANSFORMERS.get(name)
    return _SDXL if model.config.addition_embed_type == "text_time" else _SD


def family_in(folder: Path, base: str | None, model: Any) -> Family | None:
    """`family_of`; PixArt-α and Σ differ in the length of captions and not in the denoiser.

    Args:
        folder: a checkpoint of the pipeline.
        base: the pipeline that the training began with.
        model: the denoiser.
    """
    found = family_of(model)
    index = part_folder("", "model_index.json", folder, base)
    if found is _PIXART and index is not None:
        name = read_config(index / "model_index.json").get("_class_name")
        if name == "PixArtAlphaPipeline":
            return replace(found, pipeline=name)
    return found


def further_input(model: Any) -> str | None:
    """What a UNet is given beside noisy latents: `original`, `masked`; None if nothing is known.

    InstructPix2Pix's has twice the channels that it predicts, an inpainting one a mask's more.
    """
    if type(model).__name__ != "UNet2DConditionModel":
        return None
    predicted, more = model.config.out_channels, model.config.in_channels
    return {2 * predicted: "original", 2 * predicted + 1: "masked"}.get(more)


def takes_captions(model: Any) -> bool:
    """Whether a denoiser takes encoded captions, of whatever family."""
    return "encoder_hidden_states" in signature(model.forward).parameters
