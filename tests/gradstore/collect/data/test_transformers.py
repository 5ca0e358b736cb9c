"""SD3, Flux and PixArt from pictures and captions, by command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from peft import get_peft_model
from PIL import Image

import gradstore as gs
from gradstore.collect import load
from gradstore.errors import CheckpointError
from tests.support.commands import Run
from tests.support.naive import rows_of
from tests.support.pipelines import (
    CAPTIONS,
    captioned,
    lora_config,
    lora_run,
    perturbed,
    transformer_pipeline,
)

EXACT = ["--events", "planned", "--timesteps", 2, "--projector", "identity", "--dtype", "float32"]
EXACT += ["--metric", "none"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@torch.no_grad()
def by_script(name: str, pipeline: Any, picture: Path, caption: str) -> dict[str, Any]:
    """Latents and conditions as diffusers' training scripts make them."""
    with Image.open(picture) as image:
        pixels = torch.from_numpy(np.array(image, np.float32) / 127.5 - 1).permute(2, 0, 1)
    vae = pipeline.vae
    latents = vae.encode(pixels[None]).latent_dist.mode()
    latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    length = {"SD3": 256, "Flux": 512, "PixArt-α": 120, "PixArt-Σ": 300}[name]
    number = {"SD3": 3, "Flux": 2}.get(name)
    encoder, tokenizer = (
        getattr(pipeline, part if number is None else f"{part}_{number}")
        for part in ("text_encoder", "tokenizer")
    )
    tokens = tokenizer(
        caption, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    masked = {"attention_mask": tokens.attention_mask} if number is None else {}
    texts = encoder(tokens.input_ids, **masked)[0][0]

    def clip(encoder: Any, tokenizer: Any) -> Any:
        ids = tokenizer(
            caption, padding="max_length", max_length=8, truncation=True, return_tensors="pt"
        ).input_ids
        return encoder(ids, output_hidden_states=True)

    if name == "SD3":
        first = clip(pipeline.text_encoder, pipeline.tokenizer)
        second = clip(pipeline.text_encoder_2, pipeline.tokenizer_2)
        words = torch.cat([first.hidden_states[-2][0], second.hidden_states[-2][0]], -1)
        given = {
            "encoder_hidden_states": torch.cat([words, texts]),
            "pooled_projections": torch.cat([first[0][0], second[0][0]]),
        }
    elif name == "Flux":
        pooled = clip(pipeline.text_encoder, pipeline.tokenizer).pooler_output[0]
        given = {"encoder_hidden_states": texts, "pooled_projections": pooled}
        given["guidance"] = torch.tensor(3.5)
    else:
        mask = tokens.attention_mask[0].float()
        given = {"encoder_hidden_states": texts, "encoder_attention_mask": mask}
    if name == "PixArt-α":
        given |= {"resolution": torch.tensor([8.0, 8.0]), "aspect_ratio": torch.tensor([1.0])}
    return {"image": latents[0], "conditions": given}


@pytest.mark.parametrize("name", ["SD3", "Flux", "PixArt-α", "PixArt-Σ"])
@pytest.mark.parametrize("lora", [False, True])
def test_pictures_and_captions(run: Run, tmp_path: Path, name: str, lora: bool) -> None:
    """One backward pass per row on what scripts make of pictures and captions."""
    base = transformer_pipeline(name, tmp_path / "base")
    pictures = captioned(tmp_path / "pictures")
    pipeline = DiffusionPipeline.from_pretrained(base)
    where: list[object] = ["--checkpoints", base]
    loader: Any = base
    if lora:
        trained = tmp_path / "run"
        if name.startswith("PixArt"):  # as peft saves it
            adapted = get_peft_model(load(base).model, lora_config())
            perturbed(adapted, 1).save_pretrained(trained / "checkpoint-1")
        else:
            lora_run(base, trained, type(pipeline), steps=(1,))
        where = ["--checkpoints", trained, "--base", base]
        loader = gs.Adapters(base, trained)
    run("collect", "--dataset", pictures, *where, *EXACT, "--store", tmp_path / "a.gradstore")
    items = [by_script(name, pipeline, pictures / f"{n}.png", CAPTIONS[n]) for n in range(4)]
    ids = [f"{n}.png" for n in range(4)]
    expected = gs.collect(
        gs.Samples(items, ids=ids), loader, tmp_path / "b.gradstore", engine="loop",
        projector="identity", metric="none", dtype="float32",
        events=gs.EventSpec(events="planned", timesteps=2),
    )  # fmt: skip
    store = gs.open_store(tmp_path / "a.gradstore")
    assert store.manifest.ids == ids
    exact = rows_of(expected, 0)
    np.testing.assert_allclose(rows_of(store, 0), exact, atol=1e-5 * np.abs(exact).max())


def test_a_prompt_is_drawn(run: Run, tmp_path: Path) -> None:
    base = transformer_pipeline("SD3", tmp_path / "base")
    pictures = captioned(tmp_path / "pictures")
    run("collect", "--dataset", pictures, "--checkpoints", base, *EXACT,
        "--store", tmp_path / "a.gradstore")  # fmt: skip
    run("query", "--store", tmp_path / "a.gradstore", "--prompt", "a red car", "--seed", 3,
        "--k", 2, "--timesteps", 2, "--draws", 1, "--out", tmp_path / "answers")  # fmt: skip
    pipeline = DiffusionPipeline.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    own = pipeline(
        "a red car", generator=torch.Generator().manual_seed(3), num_inference_steps=50
    ).images[0]
    with Image.open(tmp_path / "answers" / "generated" / "generated-0000.png") as drawn:
        assert np.abs(np.array(own, np.int16) - np.array(drawn, np.int16)).max() <= 1
    with pytest.raises(CheckpointError, match="--prompt"):
        gs.generate(base, 1)
