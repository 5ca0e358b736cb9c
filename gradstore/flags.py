"""Configuration of `gradstore train`, `collect` and `append` in YAML, flags or Python."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field

from gradstore.errors import ConfigError, DatasetError
from gradstore.store.format.spec import (
    ADVANCED,
    EventSpec,
    GradientSpec,
    ObjectiveSpec,
    ProjectorSpec,
    Spec,
)

_DEVICES: Final = re.compile(r"(cpu|cuda|mps|xpu|xla|hpu|mtia|privateuseone)(:[0-9]{1,4})?")
_DIGITS_SPLITS: Final = ("train", "test")


def known_device(device: str | None) -> str | None:
    """Return a device if torch knows its name, or None. Torch checks later whether it exists.

    Raises:
        ValueError: if torch does not know the name.
    """
    if device is not None and not _DEVICES.fullmatch(device):
        raise ValueError("torch has devices such as cpu, cuda, cuda:1 and mps")
    return device


Device = Annotated[str | None, AfterValidator(known_device)]


class DatasetSpec(Spec):
    """Source of the samples."""

    dataset: str = Field(
        description="digits (scikit-learn's), a folder of images, a .parquet file, or hf://NAME"
    )
    split: str = Field("train", description="split of digits or of a hub dataset")
    image_column: str | None = Field(None, description="column of images [default: detected]")
    label_column: str | None = Field(None, description="column of labels [default: detected]")
    id_column: str | None = Field(None, description="column of ids [default: row number]")
    metadata_columns: list[str] = Field([], description="more columns to store with the samples")
    size: int | None = Field(None, ge=1, le=65536, description="side of resized images, in pixels")
    mode: Literal["L", "RGB", "RGBA"] | None = Field(None, description="mode of converted images")
    limit: int | None = Field(None, ge=1, description="use only the first N samples")

    def require_there(self) -> None:
        """Raise `DatasetError` unless the dataset has a known name and split or exists on disk."""
        named = self.dataset == "digits" or self.dataset.startswith("hf://")
        path = Path(self.dataset)
        file = path.suffix == ".parquet" and path.is_file()
        if not (named or file or (self.dataset and path.is_dir())):
            raise DatasetError(
                f"dataset {self.dataset!r} was not found: it is neither digits, hf://NAME, a "
                "folder of images, nor an existing .parquet file. Check --dataset."
            )
        if self.dataset == "digits" and self.split not in _DIGITS_SPLITS:
            raise DatasetError(
                f"digits has no split {self.split!r}; use --split train or --split test."
            )

    def recorded(self) -> dict[str, Any]:
        """The settings to record with the output, with the full path of a dataset on disk."""
        values = self.model_dump(mode="json")
        named = self.dataset == "digits" or self.dataset.startswith("hf://")
        if self.dataset and not named and Path(self.dataset).exists():
            values["dataset"] = str(Path(self.dataset).resolve())
        return values


class TrainConfig(DatasetSpec):
    """Configuration of the small trainer: a UNet2DModel with DDIM's cosine schedule."""

    out: str = Field(description="folder of the run; it must not exist")
    epochs: int = Field(40, ge=1, description="passes over the dataset")
    checkpoint_every: int = Field(10, ge=1, description="epochs between checkpoints")
    batch_size: int = Field(32, ge=1, description="samples per step")
    learning_rate: float = Field(
        1e-3, gt=0, allow_inf_nan=False, description="Adam's learning rate"
    )
    loss: Literal["l1", "l2"] = Field("l1", description="distance between prediction and noise")
    channels: list[int] = Field(
        [32, 64], min_length=1, description="channels of the UNet's levels; the last has attention"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of weights, order, timesteps and noise")
    device: Device = Field(None, description="torch device [default: cuda if there is one]")

    def require_sound(self) -> None:
        """Raise if the settings are invalid, as far as this shows without reading the dataset."""
        out = Path(self.out)
        if out.exists():
            raise ConfigError(
                f"{out} exists; nothing was changed. Choose another --out or move it."
            )
        if self.checkpoint_every > self.epochs:
            raise ConfigError(
                f"--checkpoint-every {self.checkpoint_every} is more than --epochs {self.epochs}: "
                "no checkpoint would be saved."
            )
        self.require_there()
        side = 8 if self.dataset == "digits" and self.size is None else self.size
        if side is not None:
            self.require_fitting(side)

    def require_fitting(self, side: int) -> None:
        """Raise `ConfigError` unless the UNet's levels fit images of `side` × `side` pixels."""
        halved = 2 ** (len(self.channels) - 1)
        if side % halved or any(channels < 1 or channels % 8 for channels in self.channels):
            raise ConfigError(
                f"--channels {','.join(map(str, self.channels))} does not fit images of "
                f"{side}×{side} pixels: each further level halves the image, and channels must be "
                "multiples of 8. Use fewer levels, other channels, or another --size."
            )


class CollectConfig(ProjectorSpec, GradientSpec, ObjectiveSpec, EventSpec, DatasetSpec):
    """Configuration of a collection, from samples and checkpoints to stored rows."""

    checkpoints: list[str] = Field(
        description="diffusers folders in training order, or one folder that holds them"
    )
    etas: list[float] | None = Field(
        None, description="weight η_k of each checkpoint [default: as recorded, else 1]"
    )
    store: str = Field(description="the store to create or resume: NAME.gradstore")
    dtype: Literal["float16", "float32", "int8"] = Field(
        "float16",
        description="stored dtype of directions; int8: half the bytes of float16, plus a scale "
        "per row",
    )
    batch_size: int = Field(32, ge=1, description="maximum events per gradient computation")
    memory: float = Field(
        4.0, gt=0, lt=1e6, description="GiB to use in addition to the model and the program itself"
    )
    engine: Literal["auto", "streaming", "vmap", "loop"] = Field(
        "auto",
        description="method for per-sample gradients; auto: the fastest that works and fits in "
        "memory",
    )
    shard_samples: int | None = Field(
        None, ge=1, description="samples per shard", json_schema_extra=ADVANCED
    )
    device: Device = Field(None, description="torch device [default: cuda if there is one]")


class AppendConfig(DatasetSpec):
    """Configuration of an append: more samples for an existing store."""

    store: str = Field(description="the store to append to")
    checkpoints: list[str] | None = Field(
        None, description="the store's checkpoints, if they moved [default: their recorded paths]"
    )
    batch_size: int = Field(32, ge=1, description="maximum events per gradient computation")
    memory: float = Field(4.0, gt=0, lt=1e6, description="GiB to use in addition to the model")
    device: Device = Field(None, description="torch device [default: cuda if there is one]")

    def dataset_spec(self) -> DatasetSpec:
        """The new samples."""
        return DatasetSpec.model_validate(self.model_dump(include=set(DatasetSpec.model_fields)))
