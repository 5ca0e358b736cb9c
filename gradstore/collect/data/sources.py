"""Loads the datasets that a configuration can name, as sequences of items."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from gradstore.collect.data import tables
from gradstore.collect.data.folders import IMAGE_SUFFIXES, Folder, files_of
from gradstore.collect.data.tars import Tars
from gradstore.errors import DatasetError, DependencyError

if TYPE_CHECKING:
    from gradstore.flags.dataset import DatasetSpec

IMAGE_COLUMNS = ("image", "img", "images", "pixel_values", "input", "edited_image")


def load(spec: DatasetSpec) -> tuple[Any, list[str] | None]:
    """Load the dataset of a specification, and its ids if they are not row numbers.

    Raises:
        DatasetError: if the dataset does not exist or cannot be read.
        DependencyError: if a required package is missing.
    """
    spec.require_there()
    if spec.dataset == "digits":
        return _digits(spec.split)
    if spec.dataset.startswith("hf://"):
        return tables.hub(spec.dataset.removeprefix("hf://"), spec.split), None
    path = Path(spec.dataset)
    if path.is_dir():
        return _folder(path, spec)
    if path.suffix == ".tar":
        tars = Tars([path])
        return tars, tars.ids
    return tables.parquet(path), None


def _folder(root: Path, spec: DatasetSpec) -> tuple[Any, list[str] | None]:
    """What a folder holds: a saved dataset, else images, else Parquet files, else tar files."""
    if tables.is_saved(root):
        return tables.saved(root, spec.split), None
    files = files_of(root, spec.reading)
    kinds = {file.suffix.lower() for file in files}
    if kinds.intersection(IMAGE_SUFFIXES):
        folder = Folder(root, files)
        return folder, folder.ids
    if ".parquet" in kinds:
        shards = [file for file in files if file.suffix.lower() == ".parquet"]
        return tables.shards(root, shards, spec.split), None
    if ".tar" in kinds:
        tars = Tars(
            tables.of_split(
                root, [file for file in files if file.suffix.lower() == ".tar"], spec.split
            )
        )
        return tars, tars.ids
    raise DatasetError(
        f"dataset {root} is empty: the folder holds no image ({', '.join(IMAGE_SUFFIXES)}), no "
        ".parquet and no .tar file."
    )


def _digits(split: str) -> tuple[list[tuple[Image.Image, int]], list[str]]:
    """scikit-learn's 1,797 handwritten digits of 8×8 pixels; the last 97 are the test split."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DependencyError(
            "the digits come with scikit-learn, which is not installed. Install it with "
            "`pip install 'gradstore[demo]'`."
        ) from error
    bunch = load_digits()
    rows = range(1700) if split == "train" else range(1700, 1797)
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    items = [(Image.fromarray(pixels[row]), int(bunch.target[row])) for row in rows]
    return items, [f"digit-{row:04d}" for row in rows]
