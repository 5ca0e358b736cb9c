"""Tiny text-to-image pipelines, and training runs on them saved as diffusers' scripts save them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PNDMScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import EMAModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.support.families import FAMILIES, made
from tests.support.worlds import images

SD_PIPELINES: dict[str, Any] = {
    "SD": StableDiffusionPipeline,
    "InstructPix2Pix": StableDiffusionInstructPix2PixPipeline,
    "inpainting": StableDiffusionInpaintPipeline,
}
XL_PIPELINES: dict[str, Any] = {
    "SD": StableDiffusionXLPipeline,
    "InstructPix2Pix": StableDiffusionXLInstructPix2PixPipeline,
    "inpainting": StableDiffusionXLInpaintPipeline,
}
CAPTIONS = ["a red car", "a dog", "a cat on a car", "a red dog"]


def tokenizer() -> CLIPTokenizer:
    """Knows letters only."""
    letters = [chr(one) for one in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {word: number for number, word in enumerate(words)}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=8)


def text_config(width: int = 6, projection: int = 5) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=54,
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=8,
        projection_dim=projection,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )


def vae(seed: int = 0, **options: Any) -> AutoencoderKL:
    """From 8 × 8 pixels to 4 × 4 latents of 4 channels."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **{"latent_channels": 4, **options},
        norm_num_groups=2,
        sample_size=8,
        scaling_factor=0.3,
    ).eval()


def stable_diffusion(
    folder: Path, *, seed: int = 0, prediction: str = "epsilon", kind: str = "SD"
) -> Path:
    """Save a pipeline like Stable Diffusion's, InstructPix2Pix's or that of inpainting."""
    unet = made(kind, seed)
    encoder = vae()
    torch.manual_seed(seed)
    SD_PIPELINES[kind](
        vae=encoder,
        text_encoder=CLIPTextModel(text_config()),
        tokenizer=tokenizer(),
        unet=unet,
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
            prediction_type=prediction,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def stable_diffusion_xl(folder: Path, *, seed: int = 0, kind: str = "SD") -> Path:
    """Save a pipeline like Stable Diffusion XL's: two text encoders, of 6 = 2 + 4 entries."""
    unet = made("SDXL", seed, in_channels=FAMILIES[kind].make().config.in_channels)
    encoder = vae()
    torch.manual_seed(seed)
    XL_PIPELINES[kind](
        vae=encoder,
        text_encoder=CLIPTextModel(text_config(2)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(4)),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def t5_tokenizer() -> T5Tokenizer:
    """Knows letters only."""
    letters = [chr(one) for one in range(ord("a"), ord("z") + 1)]
    words = ["<pad>", "</s>", "<unk>", "\u2581", *letters]
    return T5Tokenizer(vocab=[(word, -2.0) for word in words], extra_ids=0, model_max_length=8)


def t5(width: int = 6) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=30,
            d_model=width,
            d_kv=4,
            d_ff=8,
            num_layers=2,
            num_heads=1,
            feed_forward_proj="gated-gelu",
        )
    )


def transformer_pipeline(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Save a pipeline like that of SD3, Flux, PixArt-α or PixArt-Σ."""
    model = made(name, seed)
    channels = 2 if name == "Flux" else 4
    torch.manual_seed(seed)
    parts: dict[str, Any] = {
        "vae": vae(latent_channels=channels, shift_factor=0.1),
        "transformer": model,
    }
    if name == "SD3":
        StableDiffusion3Pipeline(
            **parts,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            text_encoder=CLIPTextModelWithProjection(text_config(2, 2)),
            tokenizer=tokenizer(),
            text_encoder_2=CLIPTextModelWithProjection(text_config(4, 3)),
            tokenizer_2=tokenizer(),
            text_encoder_3=t5(),
            tokenizer_3=t5_tokenizer(),
        ).save_pretrained(folder)
    elif name == "Flux":
        FluxPipeline(
            **parts,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            text_encoder=CLIPTextModel(text_config(5)),
            tokenizer=tokenizer(),
            text_encoder_2=t5(),
            tokenizer_2=t5_tokenizer(),
        ).save_pretrained(folder)
    else:
        make = PixArtAlphaPipeline if name == "PixArt-α" else PixArtSigmaPipeline
        make(
            **parts,
            scheduler=DDPMScheduler(beta_schedule="scaled_linear"),
            text_encoder=t5(),
            tokenizer=t5_tokenizer(),
        ).save_pretrained(folder)
    return folder


def captioned(folder: Path, count: int = 4, *, side: tuple[int, int] = (8, 8)) -> Path:
    """Save pictures with a `metadata.jsonl`."""
    folder.mkdir(parents=True)
    lines = []
    for number, image in enumerate(images(count, mode="RGB")):
        image.resize(side).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": CAPTIONS[number % 4]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def perturbed(model: nn.Module, seed: int) -> Any:
    """A model some steps later."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def fine_tuned(
    base: Path, out: Path, *, steps: tuple[int, ...] = (1, 2), ema: bool = False
) -> Path:
    """Save a full fine-tune as `train_text_to_image.py` does, one step after its checkpoints."""
    pipeline = DiffusionPipeline.from_pretrained(base)
    averaged = EMAModel(
        pipeline.unet.parameters(),
        model_cls=UNet2DConditionModel,
        model_config=pipeline.unet.config,
    )
    for step in (*steps, steps[-1] + 1):
        unet = perturbed(pipeline.unet, step)
        averaged.step(unet.parameters())
        if step in steps:
            unet.save_pretrained(out / f"checkpoint-{step}" / "unet")
            if ema:
                averaged.save_pretrained(out / f"checkpoint-{step}" / "unet_ema")
    if ema:
        averaged.copy_to(pipeline.unet.parameters())
    pipeline.save_pretrained(out)
    return out


def lora_config(**options: Any) -> LoraConfig:
    """The configuration of the LoRA scripts, of a small rank."""
    return LoraConfig(
        **{
            "r": 2,
            "lora_alpha": 3,
            "init_lora_weights": "gaussian",
            "target_modules": ["to_k", "to_q", "to_v", "to_out.0"],
            **options,
        }
    )


def with_lora(model: Any, seed: int, **options: Any) -> Any:
    """A model with LoRA adapters that are not at their start."""
    model.requires_grad_(False)
    torch.manual_seed(seed)
    model.add_adapter(lora_config(**options))
    return perturbed(model, seed)


def lora_run(
    base: Path,
    out: Path,
    pipeline_class: Any = StableDiffusionPipeline,
    *,
    steps: tuple[int, ...] = (1, 2),
    noted: bool = True,
    text_encoder: bool = False,
    **options: Any,
) -> Path:
    """Save a LoRA run as `train_text_to_image_lora.py` does, whose last checkpoint is the end."""
    pipeline = pipeline_class.from_pretrained(base)
    name = "unet" if hasattr(pipeline, "unet") else "transformer"
    model = with_lora(getattr(pipeline, name), 0, **options)
    for step in steps:
        perturbed(model, step)
        layers: dict[str, Any] = {f"{name}_lora_layers": get_peft_model_state_dict(model)}
        if name == "unet":
            layers = {
                "unet_lora_layers": convert_state_dict_to_diffusers(layers["unet_lora_layers"])
            }
        if noted:
            layers[f"{name}_lora_adapter_metadata"] = model.peft_config["default"].to_dict()
        if text_encoder:
            encoder = inject_adapter_in_model(
                lora_config(target_modules=["q_proj"]), CLIPTextModel(text_config())
            )
            layers["text_encoder_lora_layers"] = convert_state_dict_to_diffusers(
                get_peft_model_state_dict(encoder)
            )
        for folder in (out / f"checkpoint-{step}", out):
            pipeline_class.save_lora_weights(folder, safe_serialization=True, **layers)
    return out
