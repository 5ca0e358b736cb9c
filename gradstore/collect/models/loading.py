"""Loads a checkpoint from a diffusers folder.

Weights come from safetensors, or from a `.bin` file by `torch.load(weights_only=True)`. No
arbitrary object is unpickled, and no code from the folder runs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from inspect import signature
from typing import TYPE_CHECKING, Any

import diffusers
import torch

from gradstore.collect.models.folders import checkpoint_folders, model_folder, read_config
from gradstore.collect.models.parameters import num_parameters, select, trainable
from gradstore.collect.models.record import TrainingRecord, load_record
from gradstore.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import nn

    from gradstore.store.format.spec import Identity


_WEIGHTS = "diffusion_pytorch_model"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        path: its folder.
        model: the model, in `eval()` mode.
        scheduler: its scheduler, or None.
        record: the record of the training run, if there is one.
    """

    path: Path
    model: Any
    scheduler: Any
    record: TrainingRecord | None

    def architecture(self) -> Identity:
        """Class, configuration, and the differentiated parameters' names, shapes and order."""
        shapes = [[name, list(p.shape)] for name, p in trainable(self.model).items()]
        # Defaults are omitted, so that an option added by a later diffusers changes nothing.
        defaults = signature(type(self.model).__init__).parameters
        config = {
            key: value
            for key, value in dict(getattr(self.model, "config", {})).items()
            if not key.startswith("_") and (key not in defaults or value != defaults[key].default)
        }
        return {
            "class": type(self.model).__name__,
            "config": json.loads(json.dumps(config, default=str)),
            "num_parameters": num_parameters(self.model),
            "parameters": _digest([json.dumps(shapes).encode()]),
        }

    def weights_digest(self) -> str:
        """Hash of every tensor of the model, independent of the file format."""
        return _digest(
            part
            for name, tensor in sorted(self.model.state_dict().items())
            for part in (name.encode(), _bytes(tensor))
        )


def _bytes(tensor: torch.Tensor) -> memoryview:
    flat: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return memoryview(flat)


def _digest(parts: Iterable[bytes | memoryview]) -> str:
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def load(folder: Path, *, scheduler: Any = None, params: str | None = None) -> Checkpoint:
    """Load a checkpoint from a diffusers pipeline folder, or a model folder with a scheduler.

    Args:
        folder: the checkpoint.
        scheduler: used instead of `scheduler/` in the folder or its parent.
        params: regular expression; parameters whose name contains no match are frozen.

    Raises:
        CheckpointError: if it is half-written, unreadable, or of a class that diffusers lacks.
    """
    own = model_folder(folder)
    if own is None:
        checkpoint_folders([folder])
        raise CheckpointError(f"checkpoint {folder} is not a diffusers folder.")
    model = _load_model(own)
    model.eval()
    if params is not None:
        select(model, params)
    # diffusers' own training scripts save checkpoint-500/unet next to the run's scheduler/.
    for place in (folder / "scheduler", folder.parent / "scheduler"):
        if scheduler is None and (place / "scheduler_config.json").is_file():
            scheduler = _load_scheduler(place)
    return Checkpoint(folder, model, scheduler, load_record(folder))


def _diffusers_class(file: Path, base: type) -> Any:
    name = read_config(file).get("_class_name")
    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise CheckpointError(
            f"{file} names class {name!r}, which diffusers {diffusers.__version__} does not have "
            f"as a {base.__name__}. Install the diffusers version that saved it."
        )
    return found


def _load_model(folder: Path) -> nn.Module:
    found = _diffusers_class(folder / "config.json", diffusers.ModelMixin)
    damaged = (
        f"The checkpoint {folder} is damaged or half-written; restore it or leave it out of "
        "--checkpoints."
    )
    safe, pickled = (
        any((folder / f"{_WEIGHTS}.{suffix}{index}").is_file() for index in ("", ".index.json"))
        for suffix in ("safetensors", "bin")
    )
    if not safe and not pickled:
        raise CheckpointError(
            f"{folder} has no weights: no {_WEIGHTS}.safetensors or .bin next to config.json (a "
            f"variant such as {_WEIGHTS}.fp16.safetensors is not read). {damaged}"
        )
    try:
        model, info = found.from_pretrained(
            folder,
            # Without safetensors, diffusers reads .bin by torch.load(weights_only=True).
            use_safetensors=safe,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
            torch_dtype=torch.float32,
        )
    except Exception as error:  # diffusers may raise anything on a foreign file
        reason = " ".join((str(error) or repr(error)).split())
        raise CheckpointError(f"{folder} cannot be loaded: {reason[:300]} {damaged}") from error
    wrong = {
        what: info[what]
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info.get(what)
    }
    if wrong:
        what, keys = next(iter(wrong.items()))
        raise CheckpointError(
            f"{folder}: its weights do not match its config.json: {len(keys)} "
            f"{what.replace('_', ' ')}, such as {next(iter(keys))!r}. {damaged}"
        )
    return model  # type: ignore[no-any-return]


def _load_scheduler(folder: Path) -> Any:
    found = _diffusers_class(folder / "scheduler_config.json", diffusers.SchedulerMixin)
    try:
        return found.from_config(read_config(folder / "scheduler_config.json"))
    except Exception as error:
        raise CheckpointError(
            f"{folder}/scheduler_config.json does not describe a {found.__name__}: {error!r}. "
            "Restore it from the training run."
        ) from error
