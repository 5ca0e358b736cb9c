"""Small shared models and images. A test that changes one must copy it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from PIL import Image

from benchmarks.worlds import s3
from gradstore.collect import Recorder, Samples

# Several test processes share the cores, so each uses one thread.
torch.set_num_threads(1)

SIDE = 8
NAMES = [f"image-{number}" for number in range(7)]


def unet(seed: int, channels: int = 1, **options: Any) -> UNet2DModel:
    torch.manual_seed(seed)
    options = {
        "block_out_channels": (4, 8),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    } | options
    model = UNet2DModel(
        sample_size=SIDE,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        norm_num_groups=2,
        **options,
    )
    return model.eval()


def save_checkpoint(
    folder: Path,
    *,
    epoch: int = 1,
    learning_rate_sum: float = 0.1,
    ids: list[str] = NAMES,
    model: UNet2DModel | None = None,
    scheduler: Any = None,
) -> Path:
    """Save a checkpoint like that of a recorded training run."""
    scheduler = scheduler or DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    DDIMPipeline(model or unet(epoch), scheduler).save_pretrained(folder)
    Recorder(0, 1000).save(
        folder, ids=ids, epoch=epoch, learning_rate_sum=learning_rate_sum, loss="l1"
    )
    return folder


def images(count: int, seed: int = 0, mode: str = "L") -> list[Image.Image]:
    generator = np.random.default_rng(seed)
    shape = (count, SIDE, SIDE) + ((3,) if mode == "RGB" else ())
    return [Image.fromarray(pixels) for pixels in generator.integers(0, 256, shape, dtype=np.uint8)]


@dataclass(frozen=True)
class World:
    """Two checkpoints of a trained model, its training images and three queries."""

    checkpoints: list[Path]
    train: Samples
    queries: Samples


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """Reset the log level: the command line sets it, and tests share a process."""
    log = logging.getLogger("gradstore")
    log.setLevel(logging.NOTSET)  # a shared fixture may have set it
    yield
    log.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    return World(
        checkpoints=[
            save_checkpoint(folder / "epoch-01", epoch=1, learning_rate_sum=0.1),
            save_checkpoint(folder / "epoch-02", epoch=2, learning_rate_sum=0.4),
        ],
        train=Samples(list(zip(images(7), [0, 1, 2, 0, 1, 2, 0], strict=True)), ids=NAMES),
        queries=Samples(
            list(zip(images(3, seed=1), [0, 1, 2], strict=True)), ids=["ask-a", "ask-b", "ask-c"]
        ),
    )


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder of images in two labelled sub-folders."""
    root = tmp_path / "images"
    for number, image in enumerate(images(6)):
        target = root / ("cat" if number % 2 else "dog")
        target.mkdir(parents=True, exist_ok=True)
        image.save(target / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Server]:
    with s3.serve(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(s3_server: s3.Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty place on a real S3 server."""
    for name, value in {**s3.ENVIRONMENT, "AWS_ENDPOINT_URL": s3_server.url}.items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{uuid4().hex}"
