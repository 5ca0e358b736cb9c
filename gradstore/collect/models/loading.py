"""Loaded checkpoints, and the reading of diffusers folders.

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

from gradstore.collect.models.folders import WEIGHTS, part_folder, read_config
from gradstore.collect.models.parameters import num_parameters, trainable
from gradstore.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import nn

    from gradstore.collect.models.record import TrainingRecord
    from gradstore.store.format.spec import Identity


# What diffusers' EMAModel adds to the configuration of averaged weights.
_AVERAGING = frozenset(
    {
        "decay",
        "inv_gamma",
        "min_decay",
        "optimization_step",
        "power",
        "update_after_step",
        "use_ema_warmup",
    }
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        path: its folder.
        model: the model, in `eval()` mode.
        scheduler: its scheduler, or None.
        record: the record of the training run, if there is one.
        own: names of the tensors that the checkpoint has to itself; None for all of the model's.
    """

    path: Path
    model: Any
    scheduler: Any
    record: TrainingRecord | None
    own: frozenset[str] | None = None

    @property
    def rounded(self) -> bool:
        """Whether weights are bfloat16."""
        return any(one.dtype == torch.bfloat16 for one in self.model.parameters())

    def architecture(self) -> Identity:
        """Class, configuration, and the differentiated parameters' names, shapes and order.

        Of a model with LoRA adapters also their scales.
        """
        shapes = [[name, list(p.shape)] for name, p in trainable(self.model).items()]
        # Defaults are omitted, so that an option added by a later diffusers changes nothing.
        defaults = signature(type(self.model).__init__).parameters
        config = {
            key: value
            for key, value in dict(getattr(self.model, "config", {})).items()
            if not key.startswith("_")
            and key not in _AVERAGING
            and (key not in defaults or value != defaults[key].default)
        }
        scales = {
            name: module.scaling
            for name, module in self.model.named_modules()
            if self.own is not None and hasattr(module, "scaling")
        }
        return {
            "class": type(self.model).__name__,
            "config": json.loads(json.dumps(config, default=str)),
            "num_parameters": num_parameters(self.model),
            "parameters": digest([json.dumps(shapes).encode()]),
            **({"scales": digest([json.dumps(scales).encode()])} if scales else {}),
        }

    def weights_digest(self) -> str:
        """Hash of every tensor that the checkpoint has to itself, whatever the file format."""
        return tensors_digest(
            {
                name: tensor
                for name, tensor in self.model.state_dict().items()
                if self.own is None or name in self.own
            }
        )


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash of named tensors."""
    return digest(
        part for name, tensor in sorted(tensors.items()) for part in (name.encode(), _bytes(tensor))
    )


def _bytes(tensor: torch.Tensor) -> memoryview:
    flat: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return memoryview(flat)


def digest(parts: Iterable[bytes | memoryview]) -> str:
    """Hash of some bytes and of where each part ends."""
    found = blake2b(digest_size=16)
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()


def scheduler_of(folder: Path, base: str | None) -> Any:
    """The scheduler of a checkpoint, from the places of `part_folder`; None if there is none."""
    found = part_folder("scheduler", "scheduler_config.json", folder, base)
    return None if found is None else load_scheduler(found)


def diffusers_class(file: Path, base: type) -> Any:
    """The class of diffusers that a configuration names.

    Raises:
        CheckpointError: if diffusers has no such class derived from `base`.
    """
    name = read_config(file).get("_class_name")
    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise CheckpointError(
            f"{file} names class {name!r}, which diffusers {diffusers.__version__} does not have "
            f"as a {base.__name__}. Install the diffusers version that saved it."
        )
    return found


def load_model(
    folder: Path, *, variant: str | None = None, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Load a model from its folder.

    Args:
        folder: the folder of the model.
        variant: variant of its files of weights.
        dtype: dtype of its parameters.

    Raises:
        CheckpointError: if it is half-written, unreadable, or of a class that diffusers lacks.
    """
    found = diffusers_class(folder / "config.json", diffusers.ModelMixin)
    damaged = (
        f"The checkpoint {folder} is damaged or half-written; restore it or leave it out of "
        "--checkpoints."
    )
    safe, pickled = (_has_weights(folder, suffix, variant) for suffix in ("safetensors", "bin"))
    if not safe and not pickled:
        named = WEIGHTS if variant is None else f"{WEIGHTS}.{variant}"
        others = sorted(folder.glob(f"{WEIGHTS}*.safetensors"))
        mend = f"There is {others[0].name}: see --variant." if others else damaged
        raise CheckpointError(
            f"{folder} has no weights: no {named}.safetensors or .bin next to config.json. {mend}"
        )
    try:
        model, info = found.from_pretrained(
            folder,
            # Without safetensors, diffusers reads .bin by torch.load(weights_only=True).
            use_safetensors=safe,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
            torch_dtype=dtype,
            variant=variant,
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


def _has_weights(folder: Path, suffix: str, variant: str | None) -> bool:
    """Whether a model's folder has weights of a format, in one file or in several."""
    whole, index = f"{WEIGHTS}.{suffix}", f"{WEIGHTS}.{suffix}.index.json"
    if variant is not None:
        whole, index = f"{WEIGHTS}.{variant}.{suffix}", f"{WEIGHTS}.{suffix}.index.{variant}.json"
    return (folder / whole).is_file() or (folder / index).is_file()


def load_scheduler(folder: Path) -> Any:
    """Load a scheduler from its folder.

    Raises:
        CheckpointError: if it is unreadable, or of a class that diffusers lacks.
    """
    found = diffusers_class(folder / "scheduler_config.json", diffusers.SchedulerMixin)
    try:
        return found.from_config(read_config(folder / "scheduler_config.json"))
    except Exception as error:
        raise CheckpointError(
            f"{folder}/scheduler_config.json does not describe a {found.__name__}: {error!r}. "
            "Restore it from the training run."
        ) from error
