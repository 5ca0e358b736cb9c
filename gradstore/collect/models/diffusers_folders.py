"""Checkpoints that are folders of diffusers, each with all its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradstore.collect.models.folders import checkpoint_folders, model_folder
from gradstore.collect.models.loading import Checkpoint, load_model, scheduler_of
from gradstore.collect.models.parameters import select
from gradstore.collect.models.record import load_record
from gradstore.errors import CheckpointError
from gradstore.store.format.spec import ModelSpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gradstore.store.format.spec import Identity


class DiffusersFolders:
    """Pipeline folders, or model folders with a scheduler.

    Args:
        paths: the checkpoints in training order, or one folder that holds them.
        base: the pipeline that the training began with; only parts that the folders lack
            (scheduler, VAE, text encoders) are read from it.
        ema: take the averaged weights, `unet_ema` or `transformer_ema`.
        variant: variant of the files of weights, such as `fp16`.
        exact: whether a single path is a checkpoint, and not a folder that may hold others.

    Raises:
        CheckpointError: if one does not exist or is not a checkpoint, or the order is unclear.

    Examples:
        >>> import gradstore as gs
        >>> loader = gs.DiffusersFolders("run/checkpoints")
        >>> [folder.name for folder in loader.folders]
        ['epoch-01', 'epoch-02']
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        *,
        base: str | Path | None = None,
        ema: bool = False,
        variant: str | None = None,
        exact: bool = False,
    ) -> None:
        self._spec = ModelSpec(base=None if base is None else str(base), ema=ema, variant=variant)
        self.folders = checkpoint_folders(paths, self._spec, exact=exact)

    def load(self, folder: Path, *, scheduler: Any = None, params: str | None = None) -> Checkpoint:
        """See `Loader.load`."""
        own = model_folder(folder, ema=self._spec.ema)
        if own is None:
            raise CheckpointError(f"checkpoint {folder} is not a diffusers folder.")
        model = load_model(own, variant=self._spec.variant)
        model.eval()
        if params is not None:
            select(model, params)
        if scheduler is None:
            scheduler = scheduler_of(folder, self._spec.base)
        return Checkpoint(folder, model, scheduler, load_record(folder))

    def identity(self) -> Identity:
        """See `Loader.identity`."""
        return {}

    def spec(self) -> ModelSpec:
        """See `Loader.spec`."""
        return self._spec
