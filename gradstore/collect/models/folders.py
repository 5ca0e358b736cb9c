"""Finds checkpoint folders and their order, from names and files alone."""

from __future__ import annotations

import json
import re
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gradstore.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

EVENTS_NAME: Final = "events.parquet"
MOMENTS_NAME: Final = "adam.safetensors"
_MOST_BYTES: Final = 1 << 24
PLANNED: Final = "--events planned (in Python, events='planned')"


def require_etas(etas: Sequence[float] | None, count: int) -> None:
    """Raise `ConfigError` unless there is one finite weight η ≥ 0 for each of `count` checkpoints.

    None means the weights that the training run recorded.
    """
    if etas is not None and (
        len(etas) != count or not all(isfinite(eta) and eta >= 0 for eta in etas)
    ):
        raise ConfigError(
            f"etas are {list(etas)} for {count} checkpoints. Give one finite number ≥ 0 for each."
        )


def require_events(folders: Sequence[Path]) -> None:
    """Raise `CheckpointError` unless the training run recorded its events at every checkpoint."""
    for folder in folders:
        if not (folder / EVENTS_NAME).exists():
            raise CheckpointError(
                f"{folder} has no {EVENTS_NAME}: the training run recorded no events there. Use "
                f"{PLANNED}, or record them with gradstore.collect.Recorder."
            )


def checkpoint_folders(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """See `gradstore.collect.find_checkpoints`."""
    if isinstance(paths, str | Path):
        paths = [paths]
    if not paths:
        raise CheckpointError("no checkpoint was given. Name at least one with --checkpoints.")
    folders = [Path(path) for path in paths]
    if len(folders) == 1 and folders[0].is_dir() and model_folder(folders[0]) is None:
        inside = [folder for folder in folders[0].iterdir() if model_folder(folder)]
        if not inside and (folders[0] / "checkpoints").is_dir():
            return checkpoint_folders(folders[0] / "checkpoints")
        if inside:
            return _in_order(inside)
    for folder in folders:
        if not folder.exists():
            raise CheckpointError(
                f"checkpoint {folder} does not exist. Check the path given with --checkpoints."
            )
        if model_folder(folder) is None:
            raise CheckpointError(
                f"checkpoint {folder} is not a diffusers folder: it has neither unet/config.json, "
                "transformer/config.json nor config.json. Save one with save_pretrained()."
            )
    return folders


def _in_order(folders: list[Path]) -> list[Path]:
    numbers = {folder: [int(n) for n in re.findall(r"\d+", folder.name)] for folder in folders}
    for folder in folders:
        if not numbers[folder] or list(numbers.values()).count(numbers[folder]) > 1:
            raise CheckpointError(
                f"the name of checkpoint {folder} does not give its place in training order. "
                "Name all checkpoints, in order, with --checkpoints."
            )
    return sorted(folders, key=lambda folder: numbers[folder])


def model_folder(folder: Path) -> Path | None:
    """The model folder within a checkpoint, or the checkpoint itself; None if there is none."""
    if folder.name.startswith("."):
        return None
    for candidate in (folder / "unet", folder / "transformer", folder):
        if (candidate / "config.json").is_file():
            return candidate
    return None


def moments_file(folder: Path) -> Path:
    """The file of a checkpoint that holds its optimiser's state.

    Raises:
        CheckpointError: if there is none.
    """
    names = (MOMENTS_NAME, "optimizer.bin", "optimizer.pt")
    # diffusers' scripts save checkpoint-500/optimizer.bin beside checkpoint-500/unet/.
    own = folder.name in {"unet", "transformer"}
    for place in (folder, folder.parent) if own else (folder,):
        for name in names:
            if (place / name).is_file():
                return place / name
    raise CheckpointError(
        f"checkpoint {folder} has no optimizer state: none of {', '.join(names)} is there. Save it "
        "with Recorder.save(…, optimizer=optimizer, model=model), or use --metric fisher or kfac, "
        "which need none."
    )


def read_config(file: Path) -> dict[str, Any]:
    """Read a JSON object from a checkpoint's folder.

    Raises:
        CheckpointError: if it cannot be read or is not an object.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
        config = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file} cannot be read: {error}. The checkpoint is damaged or half-written; restore "
            "it or leave it out of --checkpoints."
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} is not a JSON object. Restore it from the training run.")
    return config
