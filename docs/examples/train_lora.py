"""Trains LoRA on Stable Diffusion, and records the timestep and noise of every step.

    python docs/examples/train_lora.py PIPELINE FOLDER RUN

FOLDER holds pictures and a metadata.jsonl with captions. Afterwards the gradients of training
itself are collected, each at the timestep and noise that its sample had:

    gradstore collect --base PIPELINE --checkpoints RUN --dataset FOLDER --events replayed --store S

What differs from a training script without gradstore is marked by `recorder`, which also chooses
the pictures that an epoch flips. Latents are the means of the VAE's posterior, as gradstore encodes
them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch.nn.functional import mse_loss

import gradstore as gs

EPOCHS, BATCH, RATE = 4, 4, 1e-4


def main(base: str, pictures: str, run: str) -> None:
    """Train, and save a checkpoint after every epoch as diffusers' scripts save it."""
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    unet, vae = pipeline.unet, pipeline.vae
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(r=4, lora_alpha=4, target_modules=["to_k", "to_q", "to_v", "to_out.0"])
    )
    weights = [one for one in unet.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE)

    samples = gs.Samples(pictures)  # ids as `gradstore collect` has them
    recorder = gs.Recorder(
        seed=0, num_train_timesteps=scheduler.config.num_train_timesteps, flip=True
    )
    with torch.no_grad():
        read = [samples[row] for row in range(len(samples))]
        images = torch.stack([sample.tensor for sample in read])
        upright, flipped = (
            vae.encode(one).latent_dist.mode() * vae.config.scaling_factor
            for one in (images, images.flip(-1))
        )
        texts, _ = pipeline.encode_prompt([sample.caption for sample in read], "cpu", 1, False)

    for epoch in range(1, EPOCHS + 1):
        for rows in torch.randperm(len(samples)).split(BATCH):
            ids = [samples.ids[row] for row in rows]
            timesteps, noise = map(
                torch.from_numpy, recorder.draw(ids, epoch, upright.shape[1:])
            )  # in place of torch.randint and torch.randn
            flips = torch.from_numpy(recorder.flips(ids, epoch))
            latents = torch.where(flips[:, None, None, None], flipped[rows], upright[rows])
            noisy = scheduler.add_noise(latents, noise, timesteps)
            predicted = unet(noisy, timesteps, texts[rows]).sample
            loss = mse_loss(predicted, noise)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        folder = Path(run) / f"checkpoint-{epoch}"
        StableDiffusionPipeline.save_lora_weights(
            folder, convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
        )
        recorder.save(
            folder,
            ids=samples.ids,
            epoch=epoch,
            learning_rate_sum=RATE * epoch,
            loss="l2",
            optimizer=optimizer,  # for --metric adam
            model=unet,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
