"""Arithmetic of samples, chunks and shards: which shard holds which samples. Pure.

A shard is the unit of work: one task computes it, one object holds its directions, one seal covers
it. Two processes that write different chunks of one shard lose data silently (zarr reads, changes
and writes the whole object), so no unit of work here is smaller than a shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Final

from gradstore.errors import ConfigError

CHUNK_BYTES = 8 * 1024
SHARD_BYTES = 64 * 1024 * 1024
SHARD_SAMPLES = 1024
ITEM_BYTES = {"float16": 2, "float32": 4, "int8": 1}


# Numbers of a row besides its direction, and their dtypes. `scale` belongs to an int8 direction.
DTYPES: Final[dict[str, str]] = {
    "norm": "float32",
    "raw_norm": "float32",
    "loss": "float32",
    "timestep": "int32",
    "sigma": "float32",
    "scale": "float32",
}


def row_columns(dtype: str, *, metric: bool = False, sigma: bool = False) -> tuple[str, ...]:
    """Names of the numbers stored with directions of a dtype.

    Args:
        dtype: stored dtype of the directions.
        metric: whether the rows are compared in a metric, so that they have two norms.
        sigma: whether the objective's noise level is σ, a function of the timestep.
    """
    wanted = {"norm", "loss", "timestep"}
    wanted |= {"raw_norm"} if metric else set()
    wanted |= {"sigma"} if sigma else set()
    wanted |= {"scale"} if dtype == "int8" else set()
    return tuple(name for name in DTYPES if name in wanted)


@dataclass(frozen=True)
class Layout:
    """Shape and partition of a store's arrays.

    Attributes:
        samples: number of samples, the first axis of every array.
        slots: events per sample and checkpoint, the second axis.
        dim: length of a direction, the third axis.
        dtype: stored dtype of the directions, `float16`, `float32` or `int8`.
        chunk_samples: samples per chunk, the smallest piece of directions that is read.
        shard_samples: samples per shard, a multiple of `chunk_samples`.
        columns: names of the numbers of a row that lie in one array, in order; by default those of
            `row_columns`. Empty in format 1, where each has an array of its own.
    """

    samples: int
    slots: int
    dim: int
    dtype: str
    chunk_samples: int
    shard_samples: int
    columns: tuple[str, ...] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.columns is None:
            object.__setattr__(self, "columns", row_columns(self.dtype))
        for name in ("samples", "slots", "dim", "chunk_samples", "shard_samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"layout: {name} is {getattr(self, name)}; it must be at least 1")
        if self.dtype not in ITEM_BYTES:
            raise ConfigError(f"layout: dtype is {self.dtype!r}; use {', '.join(ITEM_BYTES)}")
        if self.shard_samples % self.chunk_samples:
            raise ConfigError(
                f"layout: shard_samples {self.shard_samples} is not a multiple of "
                f"chunk_samples {self.chunk_samples}"
            )

    @classmethod
    def choose(
        cls,
        samples: int,
        slots: int,
        dim: int,
        dtype: str,
        shard_samples: int | None = None,
        *,
        columns: tuple[str, ...] | None = None,
    ) -> Layout:
        """Choose chunk and shard sizes.

        With chunks of 8 KiB, one row of 4,096 float16, a row can be read and checked alone. Shards
        of at most 64 MiB and 1,024 samples limit the work lost in a crash.

        Args:
            samples: number of samples.
            slots: events per sample and checkpoint.
            dim: length of a direction.
            dtype: dtype of the directions.
            shard_samples: samples per shard; by default chosen from the limits above.
            columns: names of the numbers of a row, as in `Layout`.
        """
        per_sample = max(1, slots * dim * ITEM_BYTES.get(dtype, 4))
        most = max(1, min(SHARD_SAMPLES, SHARD_BYTES // per_sample))
        wanted = shard_samples or min(most, max(1, samples))
        chunk = max(1, min(CHUNK_BYTES // per_sample, wanted))
        if shard_samples is None:
            wanted = wanted // chunk * chunk
        while wanted % chunk:
            chunk -= 1
        columns = row_columns(dtype) if columns is None else columns
        return cls(samples, slots, dim, dtype, chunk, wanted, columns)

    @property
    def shards(self) -> int:
        """Number of shards per checkpoint."""
        return ceil(self.samples / self.shard_samples)

    def span(self, shard: int) -> tuple[int, int]:
        """First and one-past-last sample of `shard`."""
        if not 0 <= shard < self.shards:
            raise ConfigError(f"layout: shard {shard} does not exist; there are {self.shards}")
        start = shard * self.shard_samples
        return start, min(start + self.shard_samples, self.samples)

    def shards_of(self, start: int, stop: int) -> range:
        """The shards that hold samples `start` to `stop` (one past the last)."""
        if not 0 <= start < stop <= self.samples:
            raise ConfigError(f"layout: samples {start}:{stop} are not within 0:{self.samples}")
        return range(start // self.shard_samples, (stop - 1) // self.shard_samples + 1)
