"""Finds checkpoint folders and their order, from names and files alone."""

from __future__ import annotations

import json
import logging
import re
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from gradstore.errors import CheckpointError, ConfigError
from gradstore.store.format.spec import ModelSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

_log = logging.getLogger("gradstore")

EVENTS_NAME: Final = "events.parquet"
MOMENTS_NAME: Final = "adam.safetensors"
LORA_NAME: Final = "pytorch_lora_weights.safetensors"
PEFT_NAME: Final = "adapter_model.safetensors"
MODELS: Final = ("unet", "transformer")
WEIGHTS: Final = "diffusion_pytorch_model"
PLAIN: Final = ModelSpec()
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


def checkpoint_folders(
    paths: str | Path | Sequence[str | Path], models: ModelSpec = PLAIN, *, exact: bool = False
) -> list[Path]:
    """See `gradstore.collect.find_checkpoints`.

    Args:
        paths: the checkpoints, or one folder that holds them.
        models: how their models are read.
        exact: whether a single path is a checkpoint, and not a folder that may hold others.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    if not paths:
        raise CheckpointError("no checkpoint was given. Name at least one with --checkpoints.")
    folders = [Path(path) for path in paths]
    if len(folders) == 1 and not exact:
        folders = _inside(folders[0], models)
    for folder in folders:
        _require_checkpoint(folder, models)
    if models.base is not None and model_folder(Path(models.base)) is None:
        raise CheckpointError(
            f"--base {models.base} is not a diffusers folder: it has neither unet/config.json, "
            "transformer/config.json nor config.json. Name the folder of the pipeline that the "
            "training began with."
        )
    return folders


def _inside(folder: Path, models: ModelSpec) -> list[Path]:
    """The checkpoints that a folder holds, in training order; itself if it holds none."""
    if not folder.is_dir():
        return [folder]
    inside = [one for one in folder.iterdir() if _is_checkpoint(one)]
    steps = _in_order([one for one in inside if re.fullmatch(r"checkpoint-\d+", one.name)])
    if _is_checkpoint(folder):
        return [*steps, folder] if _is_later(folder, steps, models) else steps
    if not inside and (folder / "checkpoints").is_dir():
        return _inside(folder / "checkpoints", models)
    return steps or _in_order(inside) or [folder]


def _is_later(folder: Path, steps: Sequence[Path], models: ModelSpec) -> bool:
    """Whether the model of a training run's folder belongs after its `checkpoint-N`.

    It does not if it is the last of these again, or if it is averaged and they are not.
    """
    if not steps:
        return True
    if not models.ema and any(map(_averaged, steps)):
        _log.info("%s holds averaged weights and is left out; --ema takes only such", folder)
        return False
    own, last = (_weights_file(one, models) for one in (folder, steps[-1]))
    return own is None or last is None or not _same_tensors(own, last)


def _same_tensors(one: Path, other: Path) -> bool:
    """Whether two files hold the same tensors; notes in a safetensors header may differ."""
    with one.open("rb") as left, other.open("rb") as right:
        if one.suffix == other.suffix == ".safetensors" and _header(left) != _header(right):
            return False
        while block := left.read(1 << 20):
            if block != right.read(len(block)):
                return False
        return not right.read(1)


def _header(file: BinaryIO) -> Any:
    """The table of a safetensors file, which is then read to its tensors; None if it is none."""
    length = int.from_bytes(file.read(8), "little")
    try:
        table = json.loads(file.read(length)) if length <= _MOST_BYTES else None
    except (ValueError, RecursionError):
        return None
    return {**table, "__metadata__": None} if isinstance(table, dict) else None


def _weights_file(folder: Path, models: ModelSpec) -> Path | None:
    """The only file of weights of a checkpoint; None if there are several."""
    found = adapter_file(folder)
    if found is None and (own := model_folder(folder, ema=models.ema)) is not None:
        files = [*own.glob(f"{WEIGHTS}*.safetensors"), *own.glob(f"{WEIGHTS}*.bin")]
        found = files[0] if len(files) == 1 else None
    return found


def _in_order(folders: list[Path]) -> list[Path]:
    numbers = {folder: [int(n) for n in re.findall(r"\d+", folder.name)] for folder in folders}
    for folder in folders:
        if not numbers[folder] or list(numbers.values()).count(numbers[folder]) > 1:
            raise CheckpointError(
                f"the name of checkpoint {folder} does not give its place in training order. "
                "Name all checkpoints, in order, with --checkpoints."
            )
    return sorted(folders, key=lambda folder: numbers[folder])


def _is_checkpoint(folder: Path) -> bool:
    if folder.name.startswith("."):
        return False
    return adapter_file(folder) is not None or model_folder(folder) is not None


def _require_checkpoint(folder: Path, models: ModelSpec) -> None:
    """Raise `CheckpointError` unless a folder holds a model or adapters that can be read."""
    if not folder.exists():
        raise CheckpointError(
            f"checkpoint {folder} does not exist. Check the path given with --checkpoints."
        )
    adapters = adapter_file(folder)
    if adapters is not None and models.base is None:
        raise CheckpointError(
            f"checkpoint {folder} holds LoRA adapters only ({adapters.name}). Name the pipeline "
            f"that they were trained on with --base{_named_base(adapters)} (in Python, "
            "Adapters(base, folders))."
        )
    if adapters is None and model_folder(folder) is None:
        raise CheckpointError(
            f"checkpoint {folder} is not a diffusers folder: it has neither unet/config.json, "
            f"transformer/config.json nor config.json, and no LoRA adapters ({LORA_NAME} or "
            f"{PEFT_NAME}). Save one with save_pretrained()."
        )
    if adapters is None and models.ema:
        model_folder(folder, ema=True)


def _named_base(adapters: Path) -> str:
    """The base that peft noted beside its adapters, for a message; it is not followed."""
    with suppress(CheckpointError):
        noted = read_config(adapters.with_name("adapter_config.json"))
        name = noted.get("base_model_name_or_path")
        if isinstance(name, str) and name:
            return f"; peft noted {name[:200]!r}"
    return ""


def adapter_file(folder: Path) -> Path | None:
    """The file with a checkpoint's LoRA adapters; None if it has none."""
    for place in (folder, *(folder / name for name in MODELS)):
        if (place / LORA_NAME).is_file():
            return place / LORA_NAME
        if (place / PEFT_NAME).is_file() and (place / "adapter_config.json").is_file():
            return place / PEFT_NAME
    return None


def model_folder(folder: Path, *, ema: bool = False) -> Path | None:
    """The model folder within a checkpoint, or the checkpoint itself; None if there is none.

    Args:
        folder: the checkpoint.
        ema: whether to take the averaged weights. Diffusers' scripts save them beside the others
            in each `checkpoint-N`, and alone at the end of training.

    Raises:
        CheckpointError: if the averaged weights are wanted and not there.
    """
    if ema and not any(map(_averaged, folder.glob("checkpoint-*"))):
        found = _averaged(folder)
        if found is None:
            raise CheckpointError(
                f"checkpoint {folder} has no averaged weights: neither unet_ema nor "
                "transformer_ema is there. Omit --ema, or this checkpoint."
            )
        return found
    for candidate in (*(folder / name for name in MODELS), folder):
        if (candidate / "config.json").is_file():
            return candidate
    return None


def _averaged(folder: Path) -> Path | None:
    for name in MODELS:
        if (folder / f"{name}_ema" / "config.json").is_file():
            return folder / f"{name}_ema"
    return folder if folder.name.endswith("_ema") and (folder / "config.json").is_file() else None


def part_folder(name: str, file: str, folder: Path, base: str | None) -> Path | None:
    """Folder of a part of a pipeline, such as `scheduler`; None if there is none.

    It lies in the checkpoint, beside it (diffusers' scripts save `checkpoint-500/unet` beside the
    run's `scheduler/`), or in the base.

    Args:
        name: name of the part.
        file: a file that it must hold.
        folder: the checkpoint.
        base: the pipeline that the training began with.
    """
    # Of a model's own folder, `checkpoint-500/unet`, the run is one further.
    around = list(folder.parents[: 2 if folder.name in MODELS else 1])
    for place in (folder, *around, *([Path(base)] if base else [])):
        if (place / name / file).is_file():
            return place / name
    return None


def moments_file(folder: Path) -> Path:
    """The file of a checkpoint that holds its optimiser's state.

    Raises:
        CheckpointError: if there is none.
    """
    names = (MOMENTS_NAME, "optimizer.bin", "optimizer.pt")
    # diffusers' scripts save checkpoint-500/optimizer.bin beside checkpoint-500/unet/.
    own = folder.name in MODELS
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
