"""Checkpoints that are LoRA adapters on one base model.

Two forms are read: `pytorch_lora_weights.safetensors` as diffusers' scripts save it, and the
`adapter_model.safetensors` and `adapter_config.json` of peft's `save_pretrained`. A configuration
from a file is not trusted: peft would import a module that it names.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import SafetensorError, safe_open

from gradstore.collect.models.folders import (
    PEFT_NAME,
    adapter_file,
    checkpoint_folders,
    model_folder,
    read_config,
)
from gradstore.collect.models.loading import Checkpoint, load_model, scheduler_of, tensors_digest
from gradstore.collect.models.parameters import select
from gradstore.collect.models.record import load_record
from gradstore.errors import CheckpointError, DependencyError
from gradstore.store.format.spec import ModelSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from gradstore.store.format.spec import Identity

_NAME: Final = "default"
_METADATA: Final = "lora_adapter_metadata"
# What of LoRA's configuration says which layers are adapted and how.
_SETTINGS: Final = frozenset(
    {
        "alpha_pattern",
        "bias",
        "exclude_modules",
        "fan_in_fan_out",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_bias",
        "modules_to_save",
        "r",
        "rank_pattern",
        "target_modules",
        "use_dora",
        "use_rslora",
    }
)


class Adapters:
    """LoRA adapters on a base that is read and hashed once.

    The parameters to differentiate are those of the adapters. Loaded checkpoints share the base's
    tensors, so that it is in memory once; adapters are float32 whatever its dtype.

    Args:
        base: folder of the pipeline, or of the model, that the adapters were trained on.
        paths: folders with adapters in training order, or one folder that holds them.
        dtype: dtype of the base, `float32` or `bfloat16`.
        variant: variant of the base's files of weights, such as `fp16`.
        exact: whether a single path is a checkpoint, and not a folder that may hold others.

    Raises:
        CheckpointError: if a folder has no adapters, or the base is no model.

    Examples:
        >>> import gradstore as gs
        >>> loader = gs.Adapters("stable-diffusion", "lora-run")  # doctest: +SKIP
        >>> gs.collect(images, loader, "lora.gradstore")  # doctest: +SKIP
    """

    def __init__(
        self,
        base: str | Path,
        paths: str | Path | Sequence[str | Path],
        *,
        dtype: str = "float32",
        variant: str | None = None,
        exact: bool = False,
    ) -> None:
        self._spec = ModelSpec(base=str(base), base_dtype=dtype, variant=variant)
        self.folders = checkpoint_folders(paths, self._spec, exact=exact)
        for folder in self.folders:
            if adapter_file(folder) is None:
                raise CheckpointError(
                    f"checkpoint {folder} holds a whole model and no LoRA adapters. Give either "
                    "adapters or whole models to --checkpoints, not both."
                )
            _require_no_text_encoder(folder)
        self._base: nn.Module | None = None
        self._digest = ""

    def _model(self) -> nn.Module:
        """A copy of the base whose tensors are the base's own."""
        if self._base is None:
            own = model_folder(Path(str(self._spec.base)))
            if own is None:
                raise CheckpointError(f"--base {self._spec.base} is not a diffusers folder.")
            dtype = getattr(torch, self._spec.base_dtype)
            self._base = load_model(own, variant=self._spec.variant, dtype=dtype)
            self._base.eval().requires_grad_(requires_grad=False)
            self._digest = tensors_digest(self._base.state_dict())
        kept = [*self._base.parameters(), *self._base.buffers()]
        return deepcopy(self._base, {id(tensor): tensor for tensor in kept})

    def load(self, folder: Path, *, scheduler: Any = None, params: str | None = None) -> Checkpoint:
        """See `Loader.load`."""
        file = adapter_file(folder)
        if file is None:
            raise CheckpointError(f"checkpoint {folder} holds no LoRA adapters.")
        tensors, settings = _read(file)
        model = self._model()
        before = {id(parameter) for parameter in model.parameters()}
        _put(tensors, settings, model, file)
        adapters = {
            name: parameter
            for name, parameter in model.named_parameters()
            if id(parameter) not in before
        }
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in adapters)
        model.eval()
        if params is not None:
            select(model, params)
        if scheduler is None:
            scheduler = scheduler_of(folder, self._spec.base)
        return Checkpoint(folder, model, scheduler, load_record(folder), frozenset(adapters))

    def identity(self) -> Identity:
        """Hash and dtype of the base."""
        if self._base is None:
            self._model()
        return {"base": self._digest, "base_dtype": self._spec.base_dtype}

    def spec(self) -> ModelSpec:
        """See `Loader.spec`."""
        return self._spec


def _require_no_text_encoder(folder: Path) -> None:
    """Refuse adapters of a text encoder that peft saved beside those of the model."""
    for name in ("text_encoder", "text_encoder_2"):
        if (folder / name / "adapter_config.json").is_file():
            _refuse_text_encoder(folder / name)


def _refuse_text_encoder(where: Path) -> None:
    raise CheckpointError(
        f"{where} has LoRA adapters of a text encoder. gradstore differentiates the denoiser only, "
        "and would encode captions without them. Attribute a run that trained the denoiser alone."
    )


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Adapters of a file by peft's names, and the settings of their layers.

    Raises:
        CheckpointError: if it cannot be read, or has other tensors than LoRA's.
    """
    try:
        with safe_open(file, "pt") as opened:
            noted = opened.metadata() or {}
            found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file} cannot be read: {error}. The checkpoint is damaged or half-written; restore "
            "it or leave it out of --checkpoints."
        ) from error
    if file.name == PEFT_NAME:
        given = read_config(file.with_name("adapter_config.json"))
        kind = str(given.get("peft_type"))
        if kind != "LORA":
            raise CheckpointError(
                f"{file} holds adapters of kind {kind[:40]}. gradstore reads LoRA and DoRA."
            )
        own = {name.removeprefix("base_model.model."): one for name, one in found.items()}
        return own, _settings(given, file)
    if any(name.startswith("text_encoder") for name in found):
        _refuse_text_encoder(file)
    prefix = next((one for one in ("unet.", "transformer.") if _all_in(found, one)), None)
    if prefix is None:
        raise CheckpointError(
            f"{file} is not of the form that diffusers' scripts save: its tensors, such as "
            f"{next(iter(found), 'none')[:80]!r}, are not all below unet. or transformer. Load it "
            "with the pipeline and save it again with save_lora_weights()."
        )
    return _as_peft({name.removeprefix(prefix): one for name, one in found.items()}, noted, file)


def _all_in(found: Mapping[str, Tensor], prefix: str) -> bool:
    return bool(found) and all(name.startswith(prefix) for name in found)


def _as_peft(
    found: dict[str, Tensor], noted: Mapping[str, str], file: Path
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Adapters by peft's names, and their settings: as the file notes, else by their shapes."""
    from diffusers.utils import convert_unet_state_dict_to_peft, get_peft_kwargs

    alphas = {name: float(one) for name, one in found.items() if name.endswith(".alpha")}
    found = {name: one for name, one in found.items() if name not in alphas}
    if not all(".lora_" in name for name in found):
        found = convert_unet_state_dict_to_peft(found)
    if _METADATA in noted:
        try:
            given = json.loads(noted[_METADATA])
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{file}: its {_METADATA} is not JSON: {error}.") from error
        given = given if isinstance(given, dict) else {}
        own = {name.partition(".")[2]: value for name, value in given.items()}
        return found, _settings(own, file)
    ranks = {
        f"^{name}": one.shape[1]
        for name, one in found.items()
        if ".lora_B." in name and one.ndim > 1
    }
    if not ranks:
        raise CheckpointError(
            f"{file} holds no LoRA adapters: no tensor is named …lora_B… or …lora.up…. Save them "
            "with save_lora_weights()."
        )
    return found, _settings(get_peft_kwargs(ranks, alphas, found), file)


def _settings(given: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The settings of LoRA's layers alone; a start that changes the base is refused."""
    start = given.get("init_lora_weights", True)
    if not isinstance(start, bool) and start != "gaussian":
        raise CheckpointError(
            f"{file} was trained with init_lora_weights={str(start)[:40]!r}, which may change the "
            "base's weights. Convert it to plain LoRA with peft's "
            "path_initial_model_for_weight_conversion."
        )
    return {name: value for name, value in given.items() if name in _SETTINGS}


def _put(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any], model: nn.Module, file: Path
) -> None:
    """Put adapters into a model, float32; every tensor must find its place.

    Raises:
        CheckpointError: if they do not fit.
        DependencyError: if peft is missing.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
    except ImportError as error:
        raise DependencyError(
            f"{file}: LoRA adapters are put into a model by peft, which is not installed. Install "
            "it with `pip install 'gradstore[text]'`."
        ) from error
    before = {id(parameter) for parameter in model.parameters()}
    try:
        inject_adapter_in_model(LoraConfig(**settings), model, _NAME)
        for parameter in model.parameters():
            if id(parameter) not in before:
                parameter.data = parameter.data.float()
        set_peft_model_state_dict(model, dict(tensors), _NAME)
        placed = set(get_peft_model_state_dict(model, adapter_name=_NAME))
    except Exception as error:  # peft may raise anything on a foreign file
        reason = " ".join((str(error) or repr(error)).split())
        raise CheckpointError(
            f"{file} does not fit the {type(model).__name__} of --base: {reason[:300]} Name the "
            "base that these adapters were trained on."
        ) from error
    if placed != set(tensors):
        odd = sorted(placed ^ set(tensors))
        raise CheckpointError(
            f"{file} does not fit the {type(model).__name__} of --base: {len(odd)} tensors, such "
            f"as {odd[0]!r}, are in one and not in the other. Name the base that these adapters "
            "were trained on."
        )
