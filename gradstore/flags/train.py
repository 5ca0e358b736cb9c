"""Flags of `gradstore train`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from gradstore.errors import ConfigError
from gradstore.flags.dataset import DatasetSpec, Device


class TrainConfig(DatasetSpec):
    """Configuration of the small trainer: a UNet2DModel with DDIM's cosine schedule."""

    out: str = Field(description="folder of the run; it must not exist")
    only: str | None = Field(
        None, description="file of ids, one per line: train on these samples only"
    )
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
        if self.only is not None and not Path(self.only).is_file():
            raise ConfigError(f"--only is {self.only!r}: there is no such file. Check the path.")
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
