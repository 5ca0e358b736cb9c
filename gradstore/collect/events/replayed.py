"""Replays the events that a training run recorded."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradstore.collect.events.noise import _PROBE, noise_identity
from gradstore.collect.events.protocol import Events
from gradstore.collect.models.folders import EVENTS_NAME, PLANNED, require_events
from gradstore.errors import CheckpointError, DatasetError
from gradstore.store.format.manifest import composed
from gradstore.store.format.parquet import open_bounded, values_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from pydantic import JsonValue

    from gradstore.store.format.spec import Identity

_COLUMNS: Final = ["id", "timestep", "noise_key"]
# Metadata key of the event file: the training run flipped samples, each by its noise key.
_FLIPPED: Final = b"gradstore flips"
_BY_KEY: Final = b"highest bit of noise_key"


class ReplayedEvents:
    """The events that a training run recorded with its checkpoints.

    Args:
        checkpoints: the checkpoints' folders.
        num_train_timesteps: the scheduler's T.
        numbers: the number of each checkpoint in the store; by default 0, 1, 2, …

    Attributes:
        flips: whether the run flipped samples at random.
    """

    slots = 1

    def __init__(
        self,
        checkpoints: Sequence[Path],
        num_train_timesteps: int,
        numbers: Sequence[int] | None = None,
    ) -> None:
        self._place = {
            number: place for place, number in enumerate(numbers or range(len(checkpoints)))
        }
        require_events(checkpoints)
        self._files = [folder / EVENTS_NAME for folder in checkpoints]
        self._events: list[dict[str, tuple[int, int]]] = []
        self._digests: list[JsonValue] = []
        self._flipped: list[bool] = []
        for file in self._files:
            recorded, flipped = _read(file)
            for name, (timestep, _) in recorded.items():
                if not 0 <= timestep < num_train_timesteps:
                    raise CheckpointError(
                        f"{file}: sample {name!r} has timestep {timestep}, but the scheduler has "
                        f"0 … {num_train_timesteps - 1}. Restore the file, or use {PLANNED}."
                    )
            content = repr(sorted(recorded.items())).encode()  # with the ids as they were recorded
            content += _FLIPPED if flipped else b""
            self._digests.append(blake2b(content, digest_size=16).hexdigest())
            self._flipped.append(flipped)
            self._events.append({composed(name): event for name, event in recorded.items()})
        self.flips = any(self._flipped)

    def identity(self) -> Identity:
        """Kind and a digest of the recorded events of each checkpoint."""
        return {"kind": "replayed", "recorded": self._digests}

    def require(self, ids: Sequence[str]) -> None:
        """Raise `DatasetError` if a sample was not part of the training run."""
        for file, events in zip(self._files, self._events, strict=True):
            for name in ids:
                if composed(name) not in events:
                    raise DatasetError(
                        f"sample {name!r} has no event in {file}, which holds {len(events)}: "
                        "the training run did not see it. Collect the training dataset, or "
                        f"use {PLANNED}."
                    )

    def at(self, checkpoint: int, ids: Sequence[str]) -> Events:
        """Each sample's recorded timestep and noise key, and whether it was flipped."""
        place = self._place[checkpoint]
        pairs = [self._events[place][composed(name)] for name in ids]
        return Events(
            np.array([[timestep] for timestep, _ in pairs], dtype=np.int64),
            np.array([[[key]] for _, key in pairs], dtype=np.uint64),
            flips_of([key for _, key in pairs]) if self._flipped[place] else None,
        )


def flips_of(keys: Sequence[int]) -> NDArray[np.bool_]:
    """Whether events flip their samples, bool `[events]`: the highest bits of their noise keys."""
    return np.array([key >> 63 for key in keys], dtype=np.bool_)


def save_events(
    folder: Path,
    ids: Sequence[str],
    timesteps: Sequence[int],
    keys: Sequence[int],
    *,
    flips: bool = False,
) -> None:
    """Write one event per sample to `events.parquet` in a checkpoint's folder.

    Args:
        folder: the folder.
        ids: the samples.
        timesteps: their timesteps.
        keys: their noise keys.
        flips: whether `flips_of` the keys says which samples were flipped; else none was.
    """
    table = pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "timestep": pa.array(timesteps, pa.int32()),
            "noise_key": pa.array(keys, pa.uint64()),
        },
        metadata={
            _PROBE: str(noise_identity()["probe"]),
            **({_FLIPPED: _BY_KEY} if flips else {}),
        },
    )
    pq.write_table(table, folder / EVENTS_NAME)


def _read(file: Path) -> tuple[dict[str, tuple[int, int]], bool]:
    """Timesteps and noise keys by sample, and whether samples were flipped."""
    try:
        with file.open("rb") as opened:
            found = open_bounded(opened, shared=True).read(columns=_COLUMNS)
        ids, timesteps, keys = (values_of(found[name]) for name in _COLUMNS)
        if not all(isinstance(one, int) for column in (timesteps, keys) for one in column):
            raise ValueError("not every timestep and noise_key is a whole number")
    except (OSError, LookupError, ValueError, pa.ArrowException) as error:
        raise CheckpointError(
            f"{file} cannot be read: {error}. Restore it, or use {PLANNED}."
        ) from error
    noted = found.schema.metadata or {}
    own = str(noise_identity()["probe"]).encode()
    probe = noted.get(_PROBE, own)  # older files have none
    if probe != own:
        raise CheckpointError(
            f"{file}: the training run drew its noise from another stream than numpy has here "
            f"(probe {probe.decode(errors='replace')[:16]}, here {own.decode()}). Use the numpy of "
            f"the training run, or {PLANNED}."
        )
    flipped = noted.get(_FLIPPED, b"")
    if flipped not in {b"", _BY_KEY}:
        raise CheckpointError(
            f"{file}: samples were flipped by {flipped.decode(errors='replace')[:40]!r}, which "
            f"this version does not know. Use {PLANNED}."
        )
    return dict(zip(ids, zip(timesteps, keys, strict=True), strict=True)), bool(flipped)
