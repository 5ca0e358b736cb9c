"""Keeps the models of checkpoints in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from gradstore.collect.models.loaders import loader_of
from gradstore.collect.models.protocol import Loader
from gradstore.collect.provenance import followed_models, recorded_folders

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from pathlib import Path

    from gradstore.store.reader import Store


T = TypeVar("T")


class CheckpointCache:
    """Checkpoint folders whose models stay in memory, for repeated queries.

    Accepted wherever checkpoints are. Later queries reuse what the first one read, hashed and
    tried, and cost only their gradients. All used models are held at once, with the buckets of
    `sjlt`, 8 bytes per parameter, in addition to the memory that collecting may use. Later changes
    of the files are ignored. Not thread-safe.

    Args:
        checkpoints: as in `find_checkpoints`, or a loader such as `Adapters`.

    Attributes:
        loader: their loader.
        folders: the checkpoints, in training order.

    Examples:
        >>> import gradstore as gs
        >>> held = gs.CheckpointCache("run/checkpoints")
        >>> for name in ("cat", "dog"):
        ...     images, out = f"asked_images/{name}", f"{name}.gradstore"
        ...     gs.collect_queries("train.gradstore", images, out, checkpoints=held)
        Store('cat.gradstore', checkpoints=2, samples=2, slots=6, dim=64)
        Store('dog.gradstore', checkpoints=2, samples=1, slots=6, dim=64)
    """

    def __init__(self, checkpoints: str | Path | Sequence[str | Path] | Loader) -> None:
        self.loader = loader_of(checkpoints)
        self.folders = self.loader.folders
        self._held: dict[Hashable, Any] = {}

    def held(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value cached for this key; made now if missing."""
        if key not in self._held:
            self._held[key] = make()
        found: T = self._held[key]
        return found


Checkpoints = CheckpointCache  # the earlier name


def found_loader(
    checkpoints: str | Path | Sequence[str | Path] | Loader | CheckpointCache,
) -> Loader:
    """The loader of checkpoints, however they are given."""
    if isinstance(checkpoints, CheckpointCache):
        return checkpoints.loader
    return loader_of(checkpoints)


def recorded_loader(
    store: Store,
    checkpoints: str | Path | Sequence[str | Path] | Loader | CheckpointCache | None = None,
    base: str | None = None,
) -> Loader:
    """The loader of a store's checkpoints, as it records them.

    Args:
        store: the store.
        checkpoints: its checkpoints, if they moved, or their loader.
        base: the base, if it moved.

    Raises:
        UnknownNameError: if the store records names that the user does not follow.
        ConfigError: if a loader of code made the store and none is given.
    """
    if isinstance(checkpoints, CheckpointCache | Loader):
        return found_loader(checkpoints)
    models = followed_models(store, base)
    folders = checkpoints or recorded_folders(store)
    return loader_of(folders, models, exact=not checkpoints)


def find_checkpoints(
    paths: str | Path | Sequence[str | Path] | Loader | CheckpointCache,
) -> list[Path]:
    """Checkpoint folders, in order: those given, or all within a single given folder.

    Within a folder, the numbers in the names define the order. The folder of a training run by
    diffusers' scripts is a series: its `checkpoint-N`, then the final model, unless that is the
    last of them again.

    Raises:
        CheckpointError: if one does not exist or is not a checkpoint, or the order is unclear.
    """
    return list(found_loader(paths).folders)
