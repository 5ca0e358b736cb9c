"""Finds the files of a folder, and presents its images with their labels and captions."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gradstore.collect.data.decoding import Encoded
from gradstore.errors import DatasetError
from gradstore.store.format.manifest import composed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_log = logging.getLogger("gradstore")

IMAGE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_NAMED: Final = "_file_name"
# Folders that programs make beside the user's own; all others that do begin with a dot.
_MADE: Final = {"__MACOSX", "@eaDir"}


class Folder:
    """Images of a folder; the label is the name of an image's own folder.

    Further columns are those of `metadata.jsonl`, whose lines name files relative to it. As in
    `datasets`, `mask_file_name` names the picture of column `mask`, which is no sample itself.

    Args:
        root: the folder.
        files: its files; those that are no images are left out.
    """

    def __init__(self, root: Path, files: Sequence[Path]) -> None:
        self._files = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
        self._noted, further = _metadata(files, set(self._files))
        self._files = [file for file in self._files if file not in further]
        self._labelled = all(len(file.relative_to(root).parts) > 1 for file in self._files)
        self.ids = [file.relative_to(root).as_posix() for file in self._files]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row: int) -> dict[str, Any]:
        file = self._files[row]
        item: dict[str, Any] = {"image": Encoded(file.read_bytes()), "path": str(file)}
        if self._labelled:
            item["label"] = file.parent.name
        noted = {
            name: Encoded(value.read_bytes()) if isinstance(value, Path) else value
            for name, value in self._noted.get(file, {}).items()
        }
        return {**noted, **item}


def files_of(root: Path, reading: int) -> list[Path]:
    """All files below a folder, in order.

    Links are followed, to files and to folders, but not to a folder that holds them. Hidden files
    and folders, whose names begin with a dot, and those that macOS and Synology add are left out.

    Args:
        root: the folder.
        reading: version of the rules; version 1 followed no links to folders and left out nothing.

    Raises:
        DatasetError: if a folder cannot be read.
    """
    if reading < 2:
        return sorted(file for file in root.rglob("*") if file.is_file())
    hidden: list[str] = []
    try:
        found = sorted(_below(root, hidden))
    except OSError as error:
        raise DatasetError(f"dataset {root} cannot be read: {error}.") from error
    if hidden:
        _log.info(
            "%s: %d hidden files and folders are left out, such as %s", root, len(hidden), hidden[0]
        )
    return found


def _below(root: Path, hidden: list[str]) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise error

    above: dict[str, frozenset[str]] = {str(root): frozenset({os.path.realpath(root)})}
    for folder, folders, files in os.walk(root, followlinks=True, onerror=fail):
        passed = above.pop(folder)
        inside = []
        for name in folders:
            path, real = os.path.join(folder, name), os.path.realpath(os.path.join(folder, name))  # noqa: PTH118
            if _hidden(name):
                hidden.append(path)
            elif real not in passed:
                inside.append(name)
                above[path] = passed | {real}
        folders[:] = inside
        for name in files:
            path = os.path.join(folder, name)  # noqa: PTH118
            if _hidden(name):
                hidden.append(path)
            else:
                yield Path(path)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in _MADE


def _metadata(
    files: Sequence[Path], images: set[Path]
) -> tuple[dict[Path, dict[str, Any]], set[Path]]:
    """The lines of every `metadata.jsonl`, by image; every image has all columns.

    Also the images that are further pictures of others.

    Raises:
        DatasetError: if one cannot be read, or names a file that is not an image of the folder.
    """
    found: dict[Path, dict[str, Any]] = {}
    further: set[Path] = set()
    known = {composed(str(image)): image for image in images}

    def named(note: Path, number: int, name: Any) -> Path:
        image = known.get(composed(str(note.parent / name))) if name else None
        if image is None:
            raise ValueError(
                f"line {number} names {str(name)[:200]!r}, which is no image below {note.parent}"
            )
        return image

    for note in (file for file in files if file.name == "metadata.jsonl"):
        try:
            with note.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    if not line.strip():
                        continue
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise TypeError(f"line {number} is no object")
                    image = named(note, number, row.pop("file_name"))
                    pictures = {
                        key.removesuffix(_NAMED): named(note, number, value)
                        for key, value in row.items()
                        if key.endswith(_NAMED) and value is not None
                    }
                    further |= set(pictures.values())
                    found[image] = row | pictures
        except (OSError, TypeError, ValueError, KeyError, RecursionError) as error:
            raise DatasetError(
                f"{note} cannot be read: {error}. Each line is a JSON object with file_name."
            ) from error
    columns = {name for row in found.values() for name in row}
    if further & found.keys():
        image = min(further & found.keys())
        raise DatasetError(f"{image} is named as a sample and as a picture of another one.")
    noted = {image: {**dict.fromkeys(columns), **found.get(image, {})} for image in images if found}
    return noted, further
