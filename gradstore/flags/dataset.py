"""Flags that name a dataset and a device, for all commands that read images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field

from gradstore.errors import DatasetError
from gradstore.store.format.spec import INTERNAL, Spec

_DEVICES: Final = re.compile(r"(cpu|cuda|mps|xpu|xla|hpu|mtia|privateuseone)(:[0-9]{1,4})?")
# Anything else might be a path: the library `datasets` would read it from this machine.
_HUB: Final = re.compile(r"hf://(\w[\w.-]*/)?\w[\w.-]*(:\w[\w.-]*)?", re.ASCII)
# Version of the rules by which datasets are read. Stores record it, and are read by their own.
READING: Final = 2
_DIGITS_SPLITS: Final = ("train", "test")


def known_device(device: str | None) -> str | None:
    """Return a device if torch knows its name, or None. Torch checks later whether it exists.

    Raises:
        ValueError: if torch does not know the name.
    """
    if device is not None and not _DEVICES.fullmatch(device):
        raise ValueError("torch has devices such as cpu, cuda, cuda:1 and mps")
    return device


Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Device = Annotated[str | None, AfterValidator(known_device)]


class DatasetSpec(Spec):
    """Source of the samples."""

    dataset: str = Field(
        description="digits (scikit-learn's), hf://NAME or hf://NAME:CONFIG, a .parquet or .tar "
        "file, or a folder: of images, of such files, or made by save_to_disk"
    )
    split: str = Field("train", description="split of digits, of shards, or of a hub dataset")
    image_column: str | None = Field(None, description="column of images [default: detected]")
    label_column: str | None = Field(None, description="column of labels [default: detected]")
    caption_column: str | None = Field(
        None, description="column of captions, also of metadata.jsonl [default: detected]"
    )
    original_column: str | None = Field(
        None,
        description="column of pictures to edit, of a model that edits (InstructPix2Pix) "
        "[default: input_image or original_image]",
    )
    mask_column: str | None = Field(
        None,
        description="column of masks, white where an inpainting model paints "
        "[default: mask or mask_image]",
    )
    id_column: str | None = Field(None, description="column of ids [default: row number]")
    metadata_columns: list[str] = Field([], description="more columns to store with the samples")
    size: int | None = Field(None, ge=1, le=65536, description="side of resized images, in pixels")
    resize: Literal["squash", "crop", "pad", "keep"] = Field(
        "squash",
        description="squash: to a square; crop: the shorter side, then the centre, as diffusers' "
        "scripts do; pad: the longer side, then white; keep: not at all, of images of several "
        "sizes",
    )
    interpolation: Interpolation | None = Field(
        None,
        description="filter that resizes, as --image_interpolation_mode of diffusers' scripts "
        "[default: bilinear of crop, else bicubic]",
    )
    mode: Literal["L", "RGB", "RGBA"] | None = Field(None, description="mode of converted images")
    limit: int | None = Field(None, ge=1, description="use only the first N samples")
    skip_unreadable: bool = Field(
        False, description="leave out samples that are damaged, and tell them"
    )
    reading: int = Field(
        READING,
        ge=1,
        le=READING,
        description="version of the rules by which the dataset is read",
        json_schema_extra=INTERNAL,
    )

    def require_there(self) -> None:
        """Raise `DatasetError` unless the dataset has a known name and split or exists on disk."""
        named = self.dataset == "digits" or self.dataset.startswith("hf://")
        path = Path(self.dataset)
        file = path.suffix in {".parquet", ".tar"} and path.is_file()
        if not (named or file or (self.dataset and path.is_dir())):
            raise DatasetError(
                f"dataset {self.dataset!r} was not found: it is neither digits, hf://NAME, a "
                "folder, nor an existing .parquet or .tar file. Check --dataset."
            )
        if self.dataset.startswith("hf://") and not _HUB.fullmatch(self.dataset):
            raise DatasetError(
                f"dataset {self.dataset!r} is not a name on the hub: hf://NAME or hf://OWNER/NAME, "
                "perhaps :CONFIG, of letters, digits and - _ . alone. Give a folder or file by its "
                "path, without hf://."
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
