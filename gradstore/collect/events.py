"""Events: the timestep and the noise of every draw, planned or replayed.

Noise is never carried from one step to the next: it is a pure function of a 64-bit key, and a key
is a hash of what it belongs to. So a row does not depend on batch size, sample order, the number
of workers, or which samples are collected together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradstore.checkpoint_folders import EVENTS_NAME, PLANNED, require_events
from gradstore.errors import CheckpointError, DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gradstore.spec import EventSpec, Identity

# Metadata of the file: the probe of the noise stream that the training run drew from.
_PROBE = b"gradstore noise probe"


def noise_key(*parts: str | int) -> int:
    """A 64-bit key for what `parts` name, the same on every machine."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def noise(key: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """Standard normal noise of a key, float32 of `shape`, the same on every machine."""
    generator = np.random.Generator(np.random.Philox(key=int(key)))
    return generator.standard_normal(tuple(shape), dtype=np.float32)


@cache
def noise_identity() -> Identity:
    """What identifies the noise stream: a hash of some of its numbers, to a thousandth.

    numpy does not promise that the stream of normal numbers stays the same. Rounding leaves out
    what another C library may change in a last bit.
    """
    drawn = np.stack([noise(noise_key("probe", part), (100,)) for part in range(10)])
    rounded = np.rint(1000 * drawn.astype(np.float64)).astype("<i4")
    return {
        "generator": "numpy.random.Philox, standard_normal of float32",
        "probe": blake2b(rounded.tobytes(), digest_size=8).hexdigest(),
    }


@dataclass(frozen=True)
class Events:
    """The events of some samples at one checkpoint.

    Attributes:
        timestep: int64 `[samples, slots]`.
        key: noise keys, uint64 `[samples, slots, draws]`.
    """

    timestep: NDArray[np.int64]
    key: NDArray[np.uint64]


class EventPlan(Protocol):
    """Which events a store's rows are made of."""

    slots: int

    def identity(self) -> Identity:
        """What identifies the events, as JSON."""

    def require(self, ids: Sequence[str]) -> None:
        """Raise `DatasetError` unless every sample has its events, before anything long starts."""

    def at(self, checkpoint: int, ids: Sequence[str]) -> Events:
        """The events of samples `ids` at the checkpoint of this number."""


class PlannedEvents:
    """Evenly spaced timesteps, the middles of equal parts of 0 … T−1, with keyed noises.

    Args:
        spec: how many timesteps and noises, and their seed.
        num_train_timesteps: the scheduler's T.
        role: what the samples are, `train` or `query`. Part of every noise key: a query that has
            a training sample's id must not have its noises, which alone would make them alike.
    """

    def __init__(
        self,
        spec: EventSpec,
        num_train_timesteps: int,
        role: Literal["train", "query"] = "train",
    ) -> None:
        if spec.timesteps > num_train_timesteps:
            raise DatasetError(
                f"{spec.timesteps} timesteps were asked for, but the scheduler has "
                f"{num_train_timesteps}. Use --timesteps {num_train_timesteps} or fewer."
            )
        self.spec = spec
        self.role = role
        self.slots = spec.timesteps
        middles = (np.arange(spec.timesteps) + 0.5) * num_train_timesteps / spec.timesteps
        self.timesteps = np.floor(middles).astype(np.int64)

    def identity(self) -> Identity:
        """Kind, role, timesteps, draws and seed."""
        return {
            "kind": "planned",
            "role": self.role,
            "timesteps": self.timesteps.tolist(),
            "draws": self.spec.draws,
            "seed": self.spec.event_seed,
        }

    def require(self, ids: Sequence[str]) -> None:
        """Every sample has them."""

    def at(self, checkpoint: int, ids: Sequence[str]) -> Events:
        """The same timesteps for every sample, each with its own noises."""
        keys = [
            [
                [
                    noise_key(self.role, self.spec.event_seed, name, checkpoint, timestep, draw)
                    for draw in range(self.spec.draws)
                ]
                for timestep in self.timesteps.tolist()
            ]
            for name in ids
        ]
        return Events(np.tile(self.timesteps, (len(ids), 1)), np.array(keys, dtype=np.uint64))


class ReplayedEvents:
    """The events that a training run recorded beside its checkpoints.

    Args:
        checkpoints: the checkpoints' folders.
        num_train_timesteps: the scheduler's T.
        numbers: the number of each checkpoint in the store; by default 0, 1, 2, …
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
        self._recorded = [_read(file) for file in self._files]
        for file, recorded in zip(self._files, self._recorded, strict=True):
            for name, (timestep, _) in recorded.items():
                if not 0 <= timestep < num_train_timesteps:
                    raise CheckpointError(
                        f"{file}: sample {name!r} has timestep {timestep}, but the scheduler has "
                        f"0 … {num_train_timesteps - 1}. Restore the file, or use {PLANNED}."
                    )

    def identity(self) -> Identity:
        """Kind and a digest of the recorded events of each checkpoint."""
        return {
            "kind": "replayed",
            "recorded": [
                blake2b(repr(sorted(recorded.items())).encode(), digest_size=16).hexdigest()
                for recorded in self._recorded
            ],
        }

    def require(self, ids: Sequence[str]) -> None:
        """Raise `DatasetError` if a sample was not part of the training run."""
        for file, recorded in zip(self._files, self._recorded, strict=True):
            for name in ids:
                if name not in recorded:
                    raise DatasetError(
                        f"sample {name!r} has no event in {file}, which holds {len(recorded)}: "
                        "the training run did not see it. Collect the dataset that was trained "
                        f"on, or use {PLANNED}."
                    )

    def at(self, checkpoint: int, ids: Sequence[str]) -> Events:
        """Each sample's recorded timestep and noise key."""
        recorded = self._recorded[self._place[checkpoint]]
        pairs = [recorded[name] for name in ids]
        return Events(
            np.array([[timestep] for timestep, _ in pairs], dtype=np.int64),
            np.array([[[key]] for _, key in pairs], dtype=np.uint64),
        )


def save(folder: Path, ids: Sequence[str], timesteps: Sequence[int], keys: Sequence[int]) -> None:
    """Write one event per sample to `events.parquet` in a checkpoint's folder."""
    table = pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "timestep": pa.array(timesteps, pa.int32()),
            "noise_key": pa.array(keys, pa.uint64()),
        },
        metadata={_PROBE: str(noise_identity()["probe"])},
    )
    pq.write_table(table, folder / EVENTS_NAME)


def _read(file: Path) -> dict[str, tuple[int, int]]:
    try:
        found = pq.read_table(file, columns=["id", "timestep", "noise_key"])
        table = found.to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise CheckpointError(
            f"{file} cannot be read: {error}. Restore it, or use {PLANNED}."
        ) from error
    own = str(noise_identity()["probe"]).encode()
    probe = (found.schema.metadata or {}).get(_PROBE, own)  # files of older runs have none
    if probe != own:
        raise CheckpointError(
            f"{file}: the training run drew its noise from another stream than numpy draws here "
            f"(probe {probe.decode(errors='replace')[:16]}, here {own.decode()}). Use the numpy of "
            f"the training run, or {PLANNED}."
        )
    pairs = zip(table["timestep"], table["noise_key"], strict=True)
    return dict(zip(table["id"], pairs, strict=True))
