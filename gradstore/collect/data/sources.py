"""Loads the datasets that a configuration can name, as sequences of items."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from gradstore.errors import DatasetError, DependencyError
from gradstore.store.format.parquet import open_bounded

if TYPE_CHECKING:
    from gradstore.flags.dataset import DatasetSpec

_log = logging.getLogger("gradstore")

IMAGE_COLUMNS = ("image", "img", "images", "pixel_values", "input")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


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
        return _hub(spec.dataset.removeprefix("hf://"), spec.split), None
    path = Path(spec.dataset)
    return _folder(path) if path.is_dir() else (_parquet(path, spec.image_column), None)


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


class _Folder:
    """Images of a folder; the label is the name of an image's own folder.

    Further columns are those of `metadata.jsonl`, whose lines name files relative to it.
    """

    def __init__(self, root: Path, files: list[Path]) -> None:
        self._files = files
        self._noted = _metadata(root, set(files))
        self._labelled = all(len(file.relative_to(root).parts) > 1 for file in files)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row: int) -> dict[str, Any]:
        file = self._files[row]
        with Image.open(file) as image:
            image.load()
            item: dict[str, Any] = {"image": image, "path": str(file)}
        if self._labelled:
            item["label"] = file.parent.name
        return {**self._noted.get(file, {}), **item} if self._noted else item


def _metadata(root: Path, files: set[Path]) -> dict[Path, dict[str, Any]]:
    """The lines of every `metadata.jsonl` of a folder, by file; every file has all columns.

    Raises:
        DatasetError: if one cannot be read, or names a file that is not an image of the folder.
    """
    found: dict[Path, dict[str, Any]] = {}
    for note in sorted(root.rglob("metadata.jsonl")):
        try:
            with note.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    if not line.strip():
                        continue
                    row = json.loads(line)
                    name = row.pop("file_name") if isinstance(row, dict) else None
                    if not isinstance(name, str) or note.parent / name not in files:
                        raise ValueError(
                            f"line {number} names file_name {str(name)[:200]!r}, which is no image "
                            f"below {note.parent}"
                        )
                    found[note.parent / name] = row
        except (OSError, ValueError, KeyError, RecursionError) as error:
            raise DatasetError(
                f"{note} cannot be read: {error}. Each line is a JSON object with file_name."
            ) from error
    columns = {name for row in found.values() for name in row}
    return {file: {**dict.fromkeys(columns), **found.get(file, {})} for file in files if found}


def _folder(root: Path) -> tuple[_Folder, list[str]]:
    files = sorted(
        file
        for file in root.rglob("*")
        if file.suffix.lower() in _IMAGE_SUFFIXES and file.is_file()
    )
    if not files:
        raise DatasetError(
            f"dataset {root} is empty: the folder holds no image ({', '.join(_IMAGE_SUFFIXES)})."
        )
    return _Folder(root, files), [file.relative_to(root).as_posix() for file in files]


def _parquet(path: Path, image_column: str | None) -> Any:
    import datasets
    import pyarrow as pa

    try:
        with path.open("rb") as file:
            table = open_bounded(file, shared=False).read()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DatasetError(
            f"dataset {path} cannot be read: {error}. Check the file, or write it anew with "
            "pyarrow.parquet.write_table(table, path, use_dictionary=False)."
        ) from error
    dataset = _dataset(table, path)
    for name in [image_column] if image_column else IMAGE_COLUMNS:
        encoded = dataset.features.get(name)
        # Files not written by `datasets` hold images as bare {bytes, path} or bytes.
        if isinstance(encoded, dict) or getattr(encoded, "dtype", None) == "binary":
            dataset = dataset.cast_column(name, datasets.Image())
    return dataset


def _dataset(table: Any, path: Path) -> Any:
    """A table as a dataset; the features that `datasets` noted in it need not be those it knows."""
    import datasets

    try:
        return datasets.Dataset(table)
    except Exception:  # it may raise anything on another version's note
        _log.warning("%s: its note of features is not understood and is not used", path)
    try:
        return datasets.Dataset(table.replace_schema_metadata(None))
    except Exception as error:
        reason = " ".join((str(error) or repr(error)).split())[:300]
        raise DatasetError(
            f"dataset {path} cannot be used: {reason}. Write it anew with columns of numbers, "
            "texts and images."
        ) from error


def _hub(name: str, split: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DatasetError(
            f"dataset hf://{name} (split {split!r}) cannot be loaded: {error}. Check the name and "
            "split, and that the hub can be reached."
        ) from error
