"""Chooses the loader of checkpoints by what their folders hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradstore.collect.models.adapters import Adapters
from gradstore.collect.models.diffusers_folders import DiffusersFolders
from gradstore.collect.models.folders import adapter_file, checkpoint_folders
from gradstore.collect.models.protocol import Loader
from gradstore.store.format.spec import ModelSpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gradstore.collect.models.loading import Checkpoint


def loader_of(
    checkpoints: str | Path | Sequence[str | Path] | Loader,
    models: ModelSpec | None = None,
    *,
    exact: bool = False,
) -> Loader:
    """The loader itself, or the one for the given folders.

    Args:
        checkpoints: a loader, folders in training order, or one folder that holds them.
        models: how their models are read.
        exact: whether a single path is a checkpoint, and not a folder that may hold others.

    Raises:
        CheckpointError: if one does not exist or is not a checkpoint, or the order is unclear.
    """
    if isinstance(checkpoints, Loader):
        return checkpoints
    models = models or ModelSpec()
    folders = checkpoint_folders(checkpoints, models, exact=exact)
    if models.base is not None and any(map(adapter_file, folders)):
        return Adapters(
            models.base, folders, dtype=models.base_dtype, variant=models.variant, exact=True
        )
    return DiffusersFolders(
        folders, base=models.base, ema=models.ema, variant=models.variant, exact=True
    )


def load(folder: str | Path, *, scheduler: Any = None, params: str | None = None) -> Checkpoint:
    """Load a checkpoint from a diffusers pipeline folder, or a model folder with a scheduler.

    Args:
        folder: the checkpoint.
        scheduler: used instead of `scheduler/` in the folder or beside it.
        params: regular expression; parameters whose name contains no match are frozen.

    Raises:
        CheckpointError: if it is half-written, unreadable, or of a class that diffusers lacks.
    """
    loader = loader_of([folder], exact=True)
    return loader.load(loader.folders[0], scheduler=scheduler, params=params)
