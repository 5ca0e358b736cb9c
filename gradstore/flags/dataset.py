"""Flags that name a dataset and a device, for all commands that read images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field

from gradstore.errors import DatasetError
from gradstore.store.format.spec import (
    Spec,
)

_DEVICES: Final = re.compile(r"(cpu|cuda|mps|xpu|xla|hpu|mtia|privateuseone)(:[0-9]{1,4})?")
# Anything else might be a path: the library `datasets` would read it from this machine.
_HUB: Final = re.compile(r"hf://(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
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
    caption_column: str | None = Field(
        None, description="column of captions, also of metadata.jsonl [default: detected]"
    )
    id_column: str | None = Field(None, description="column of ids [default: row number]")
    metadata_columns: list[str] = Field([], description="more columns to store with the samples")
    size: int | None = Field(None, ge=1, le=65536, description="side of resized images, in pixels")
    resize: Literal["squash", "crop"] = Field(
        "squash",
        description="squash: to a square; crop: the shorter side, then the centre, as diffusers' "
        "scripts do",
    )
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
        if self.dataset.startswith("hf://") and not _HUB.fullmatch(self.dataset):
            raise DatasetError(
                f"dataset {self.dataset!r} is not a name on the hub: hf://NAME or hf://OWNER/NAME, "
                "of letters, digits and - _ . alone. Give a folder or file by its path, without "
                "hf://."
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
