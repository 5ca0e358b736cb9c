"""Events on a grid of timesteps."""

from __future__ import annotations

from math import floor
from typing import TYPE_CHECKING, Literal

import numpy as np

from gradstore.collect.events.noise import noise_key
from gradstore.collect.events.protocol import Events
from gradstore.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradstore.store.format.spec import EventSpec, Identity


class PlannedEvents:
    """Evenly spaced timesteps, the midpoints of equal parts of 0 … T−1, with keyed noises.

    With `timesteps_below` b, of 0 … bT−1.

    Args:
        spec: numbers of timesteps and noises, and their seed.
        num_train_timesteps: the scheduler's T.
        role: role of the samples: `train`, `query`, or `metric` to fit one. It is part of every
            noise key: a query with a training sample's id must not share its noises, which alone
            would make them similar.
    """

    thread_safe = True

    def __init__(
        self,
        spec: EventSpec,
        num_train_timesteps: int,
        role: Literal["train", "query", "metric"] = "train",
    ) -> None:
        there = spec.timesteps_below * num_train_timesteps
        if spec.timesteps > there:
            raise DatasetError(
                f"{spec.timesteps} timesteps were asked for; of the scheduler's "
                f"{num_train_timesteps}, {floor(there)} lie below the share "
                f"{spec.timesteps_below:g}. Use --timesteps {max(1, floor(there))} or fewer, or a "
                "larger --timesteps-below, at most 1."
            )
        self.spec = spec
        self.role = role
        self.slots = spec.timesteps
        middles = (np.arange(spec.timesteps) + 0.5) * there / spec.timesteps
        self.timesteps = np.floor(middles).astype(np.int64)

    def identity(self) -> Identity:
        """Kind, role, timesteps and what chose them, draws and seed."""
        below = self.spec.timesteps_below
        return {
            "kind": "planned",
            "role": self.role,
            "timesteps": self.timesteps.tolist(),
            **({"below": below} if below < 1 else {}),  # stores made before have no such entry
            "draws": self.spec.draws,
            "seed": self.spec.event_seed,
        }

    def require(self, ids: Sequence[str]) -> None:
        """Every sample has events."""

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
