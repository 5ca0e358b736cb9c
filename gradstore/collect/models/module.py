"""Checkpoints that are state dicts of a user's own module."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gradstore.collect.models.loading import Checkpoint
from gradstore.collect.models.parameters import select
from gradstore.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gradstore.store.format.spec import Identity, ModelSpec

_UNREADABLE = (OSError, SafetensorError, RuntimeError, EOFError, ValueError, UnpicklingError)


class Module:
    """State dicts of any `nn.Module`, from `.safetensors` files or those of `torch.save`.

    Files of `torch.save` are read with `weights_only=True`. Rows need a scheduler or an objective:
    give `collect` a `scheduler=` or an `objective=`.

    Args:
        make: makes the module, without weights of its own that matter.
        files: one file per checkpoint, in training order.
        key: where the state dict lies in the file: names of nested mappings joined by points, such
            as `ema` or `state.model`; empty if the file is the state dict.
        prefix: only entries whose name begins with this count, without it, such as
            `ema_model.model.`.

    Examples:
        >>> import gradstore as gs
        >>> loader = gs.Module(make, ["model-1.pt", "model-2.pt"], key="ema")  # doctest: +SKIP
        >>> gs.collect(images, loader, "my.gradstore", scheduler=scheduler)  # doctest: +SKIP
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        files: Sequence[str | Path],
        *,
        key: str = "",
        prefix: str = "",
    ) -> None:
        self._make, self._key, self._prefix = make, key, prefix
        self.folders = [Path(file) for file in files]
        if not self.folders:
            raise CheckpointError("no checkpoint was given. Name at least one file.")
        for file in self.folders:
            if not file.is_file():
                raise CheckpointError(f"checkpoint {file} does not exist. Check the path.")

    def load(self, folder: Path, *, scheduler: Any = None, params: str | None = None) -> Checkpoint:
        """See `Loader.load`."""
        model = self._make()
        state = self._state(folder)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"checkpoint {folder} does not fit the module that make() returns: "
                f"{reason[:300]} Check key= and prefix=."
            ) from error
        model.float().eval()
        if params is not None:
            select(model, params)
        return Checkpoint(folder, model, scheduler, None)

    def _state(self, file: Path) -> dict[str, Tensor]:
        try:
            if file.suffix == ".safetensors":
                found: Any = load_file(file)
            else:
                found = torch.load(file, map_location="cpu", weights_only=True)
        except _UNREADABLE as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"checkpoint {file} cannot be read: {reason[:300]} Only tensors and plain values "
                "are read; save the state dict alone."
            ) from error
        for name in filter(None, self._key.split(".")):
            if not isinstance(found, dict) or name not in found:
                shown = ", ".join(map(str, list(found)[:8])) if isinstance(found, dict) else "none"
                raise CheckpointError(
                    f"checkpoint {file} has no {name!r} of key={self._key!r}; there are {shown}."
                )
            found = found[name]
        state = {
            str(name)[len(self._prefix) :]: value
            for name, value in (found.items() if isinstance(found, dict) else ())
            if str(name).startswith(self._prefix) and isinstance(value, Tensor)
        }
        if not state:
            raise CheckpointError(
                f"checkpoint {file} has no tensors at key={self._key!r}, prefix={self._prefix!r}. "
                "Name where the state dict lies."
            )
        return state

    def identity(self) -> Identity:
        """See `Loader.identity`."""
        return {}

    def spec(self) -> ModelSpec | None:
        """None: only code can make the module."""
        return None
