"""The scripts in docs/examples run, and what they record is what gradstore replays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline

import gradstore as gs
from tests.support.commands import Run
from tests.support.naive import rows_of
from tests.support.pipelines import captioned, stable_diffusion

HERE = Path(__file__).parent.parent


def test_the_events_of_a_lora_run_are_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row is the gradient of its sample's own step in the checkpointed epoch."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = Run(capsys, monkeypatch)
    base, pictures = stable_diffusion(tmp_path / "sd"), captioned(tmp_path / "pictures")
    subprocess.run(
        [
            sys.executable, HERE / "docs" / "examples" / "train_lora.py",
            base, pictures, tmp_path / "run",
        ],
        check=True,
        env={**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )  # fmt: skip
    base_command = ["--base", base, "--checkpoints", tmp_path / "run", "--dataset", pictures]
    base_command += ["--events", "replayed", "--dtype", "float32"]
    run("collect", *base_command, "--projector", "identity", "--metric", "none",
        "--store", tmp_path / "a.gradstore")  # fmt: skip
    run("collect", *base_command, "--projector", "sjlt", "--proj-dim", 16, "--metric", "adam",
        "--store", tmp_path / "b.gradstore")  # fmt: skip
    store = gs.open_store(tmp_path / "a.gradstore")
    assert store.etas == pytest.approx([1e-4] * 4)
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    pipeline.load_lora_weights(tmp_path / "run" / "checkpoint-3")
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    weights = [one for name, one in pipeline.unet.named_parameters() if "lora_" in name]
    samples, recorder = gs.Samples(pictures), gs.Recorder(0, 1000, flip=True)
    flips = recorder.flips(samples.ids, 3)
    assert 0 < flips.sum() < 4
    expected = []
    for row in range(4):
        sample = samples[row]
        pixels = sample.tensor.flip(-1) if flips[row] else sample.tensor
        with torch.no_grad():
            latents = pipeline.vae.encode(pixels[None]).latent_dist.mode() * 0.3
            texts, _ = pipeline.encode_prompt(sample.caption, "cpu", 1, False)
        drawn = recorder.draw([sample.name], 3, latents.shape[1:])
        timestep, noise = map(torch.from_numpy, drawn)
        noisy = scheduler.add_noise(latents, noise, timestep)
        for one in weights:
            one.requires_grad_()
        loss = (pipeline.unet(noisy, timestep, texts).sample - noise).square().mean()
        found = torch.autograd.grad(loss, weights)
        expected.append(torch.cat([one.flatten() for one in found]).double().numpy())
    exact = np.stack(expected)[:, None]
    np.testing.assert_allclose(rows_of(store, 2), exact, atol=1e-5 * np.abs(exact).max())
