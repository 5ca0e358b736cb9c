"""Trains a small UNet2DModel on images, for users without a model.

As in the paper's code: DDIM scheduler, cosine schedule, L1 loss, Adam. All randomness is a function
of the seed. The events of each checkpointed epoch are recorded.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import yaml
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from safetensors import SafetensorError

from gradstore.collect import devices
from gradstore.collect.data.samples import Samples
from gradstore.collect.events.recorder import Recorder
from gradstore.collect.objectives.diffusion import DiffusionLoss
from gradstore.errors import ConfigError, DatasetError
from gradstore.flags.dataset import DatasetSpec
from gradstore.progress import progress
from gradstore.store.format.manifest import composed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from gradstore.flags.train import TrainConfig

CONFIG_NAME = "train.yaml"
LOG_NAME = "losses.jsonl"
COLLECT_NAME = "collect.yaml"


def train(config: TrainConfig) -> list[Path]:
    """Train, and save checkpoints as diffusers folders in `config.out/checkpoints`.

    Returns:
        The checkpoints, in training order.

    Raises:
        ConfigError: if `config.out` exists; it is not changed.
        DatasetError: if the dataset cannot be trained on.

    Examples:
        >>> import gradstore as gs
        >>> config = gs.TrainConfig(
        ...     dataset="my_images", out="toy", epochs=2, checkpoint_every=1, channels=[8]
        ... )
        >>> [folder.name for folder in gs.train(config)]
        ['epoch-0001', 'epoch-0002']
    """
    config.require_sound()
    out = Path(config.out)
    samples = Samples.from_spec(config)
    if config.only is not None:
        wanted = Path(config.only).read_text(encoding="utf-8").splitlines()
        known = set(samples.ids)
        lacking = {name for name in wanted if composed(name) not in known}
        if lacking:
            raise DatasetError(
                f"--only {config.only} names {min(lacking)!r}, which {config.dataset} does not "
                f"have (and {len(lacking) - 1} more). Give ids of this dataset, one per line."
            )
        samples = samples.only(wanted)
    data = _stack(samples)
    device = devices.choose(config.device)
    data = data.to(device)
    torch.manual_seed(config.seed)
    model = _model(config, data).to(device)
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    objective = DiffusionLoss(scheduler, config.loss)
    recorder = Recorder(config.seed, objective.num_train_timesteps)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    with _writing(out):
        out.mkdir(parents=True)
        (out / CONFIG_NAME).write_text(settings)
        if config.only is None:  # rows need the events of every sample
            (out / COLLECT_NAME).write_text(_collect_settings(config))
    folders = []
    with _writing(out), progress(config.epochs * len(samples), "training", "samples") as bar:
        for epoch in range(1, config.epochs + 1):
            generator = np.random.Generator(np.random.Philox(key=[config.seed, epoch]))
            order = generator.permutation(len(samples))
            total = 0.0
            for start in range(0, len(order), config.batch_size):
                rows = order[start : start + config.batch_size].tolist()
                timesteps, noise = recorder.draw(
                    [samples.ids[row] for row in rows], epoch, data.shape[1:]
                )
                loss = objective.losses(
                    model,
                    data[rows],
                    torch.from_numpy(timesteps).to(device),
                    torch.from_numpy(noise).to(device),
                    {},
                ).mean()
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += loss.item() * len(rows)
                bar.update(len(rows))
            mean = total / len(samples)
            bar.set_postfix(epoch=epoch, loss=f"{mean:.4f}")
            with (out / LOG_NAME).open("a") as log:
                log.write(json.dumps({"epoch": epoch, "loss": mean}) + "\n")
            if epoch % config.checkpoint_every == 0:
                folder = out / "checkpoints" / f"epoch-{epoch:04d}"
                # Written, then renamed: a half-written folder never has a checkpoint's name.
                writing = folder.with_name(f".{folder.name}.writing")
                DDIMPipeline(model, scheduler).save_pretrained(writing)
                recorder.save(
                    writing,
                    ids=samples.ids,
                    epoch=epoch,
                    learning_rate_sum=config.learning_rate * epoch,
                    loss=config.loss,
                    optimizer=optimizer,
                    model=model,
                )
                writing.rename(folder)
                folders.append(folder)
    return folders


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Name the run in the errors of writing it: a full disk tells no name of a file."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        told = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{out} cannot be written: {told}. Free disk space, remove {out} or choose another "
            "--out, and run the same command again."
        ) from error


def _collect_settings(config: TrainConfig) -> str:
    """The settings with which `gradstore collect` collects this run's training set."""
    settings = config.recorded()
    keep = [name for name in DatasetSpec.model_fields if name in config.model_fields_set]
    values = {name: settings[name] for name in keep}
    values["checkpoints"] = [str(Path(config.out).resolve() / "checkpoints")]
    values["store"] = str(Path(config.out).resolve() / "train.gradstore")
    return yaml.safe_dump(values, sort_keys=False)


def _stack(samples: Samples) -> Tensor:
    tensors = [samples[row].tensor for row in range(len(samples))]
    for name, tensor in zip(samples.ids, tensors, strict=True):
        if tensor.ndim != 3 or tensor.shape != tensors[0].shape:
            raise DatasetError(
                f"sample {name!r} has shape {tuple(tensor.shape)}, sample {samples.ids[0]!r} has "
                f"{tuple(tensors[0].shape)}: the trainer needs images of one size and mode. Use "
                "--size and --mode."
            )
    height, width = tensors[0].shape[1:]
    if height != width:
        raise DatasetError(
            f"the images are {width}×{height} pixels: the trainer needs square images. Use --size."
        )
    return torch.stack(tensors)


def _model(config: TrainConfig, data: Tensor) -> UNet2DModel:
    levels = len(config.channels)
    side = data.shape[2]
    config.require_fitting(side)
    return UNet2DModel(
        sample_size=side,
        in_channels=data.shape[1],
        out_channels=data.shape[1],
        layers_per_block=1,
        block_out_channels=tuple(config.channels),
        down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        norm_num_groups=8,
    )
