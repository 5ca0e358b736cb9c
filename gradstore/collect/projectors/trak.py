"""TRAK's projection: the very matrix of `trak.projectors.BasicProjector`, drawn once and kept.

BasicProjector regenerates its matrix at every call, which costs seventy times the gradients
themselves. Here each block of columns is drawn once per checkpoint, from the seeds that
BasicProjector itself computes, and kept as one bit per entry; raw sketches are equal bit for bit.

The matrix is always drawn by the CPU's generator and moved to where the gradients are, so that a
store built on a GPU can be queried from a CPU and the other way round. (BasicProjector on a GPU
draws another matrix.)
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from trak.projectors import BasicProjector

from gradstore.collect.projectors import signs
from gradstore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from gradstore.spec import Identity, ProjectorSpec

_log = logging.getLogger("gradstore")

# A float32 product is cut at this many bytes of matrix: up to 2 million parameters at 128 columns
# it is one product, as in BasicProjector; beyond, sums differ by float32 rounding.
_EXACT_BYTES = 1 << 30
# A bfloat16 product is cut into pieces of this many rows: 16 MB at 128 columns.
_FAST_ROWS = 1 << 16
_MAX_BLOCKS = 99


class TrakProjector:
    """A random matrix per checkpoint with entries ±1 or N(0, 1), scaled by 1/√dim.

    Attributes:
        spec: its settings.
    """

    def __init__(self, spec: ProjectorSpec) -> None:
        self.spec = spec
        self._scratch = _Scratch()
        self._kept: dict[tuple[int, int, torch.device], TrakProjection] = {}
        blocks = len(self._seeds(0))
        if blocks > _MAX_BLOCKS:
            raise ConfigError(
                f"projector: proj_dim {spec.proj_dim} in blocks of {spec.resolved_block_size} is "
                f"{blocks} blocks; from 100 on, TRAK's seeding gives two checkpoints the same "
                f"block. Use --block-size {-(-spec.proj_dim // _MAX_BLOCKS)} or more."
            )

    def _seeds(self, checkpoint: int) -> list[int]:
        # One parameter long, it costs nothing; its block seeds are those of any length.
        seeding = BasicProjector(
            grad_dim=1,
            proj_dim=self.spec.proj_dim,
            seed=self.spec.proj_seed,
            proj_type=self.spec.proj_type,
            device=torch.device("cpu"),
            block_size=self.spec.resolved_block_size,
            model_id=checkpoint,
        )
        return list(seeding.seeds)

    def identity(self, num_parameters: int) -> Identity:
        """Settings, and a hash of the matrix's first entries.

        The hash catches a generator that changed its stream, whatever the version that did it.
        """
        projection = TrakProjection(
            self.spec, self._seeds(0), min(16, num_parameters), torch.device("cpu"), _Scratch()
        )
        digest = blake2b(projection.first_rows().numpy().tobytes(), digest_size=8)
        return {
            "name": "trak",
            "proj_dim": self.spec.proj_dim,
            "proj_type": self.spec.proj_type,
            "seed": self.spec.proj_seed,
            "block_size": self.spec.resolved_block_size,
            "precision": self.spec.precision,
            "generator": "cpu",
            "probe": digest.hexdigest(),
        }

    def dim(self, num_parameters: int) -> int:  # noqa: ARG002
        """`proj_dim`."""
        return self.spec.proj_dim

    def at(
        self, checkpoint: int, num_parameters: int, device: torch.device, memory: int
    ) -> TrakProjection:
        """The checkpoint's matrix; kept between calls as far as `memory` allows."""
        key = (checkpoint, num_parameters, device)
        if key not in self._kept:
            projection = TrakProjection(
                self.spec, self._seeds(checkpoint), num_parameters, device, self._scratch
            )
            if projection.nbytes > memory:
                _log.warning(
                    "the trak matrix of %s parameters and %s dimensions takes %.1f GB, more than "
                    "the %.1f GB for it: it is drawn anew for every batch, which is slow. Give "
                    "twice as much with --memory, or use a smaller --proj-dim.",
                    f"{num_parameters:,}",
                    f"{self.spec.proj_dim:,}",
                    projection.nbytes / 1e9,
                    memory / 1e9,
                )
                return projection
            while self._kept and sum(p.nbytes for p in self._kept.values()) > (
                memory - projection.nbytes
            ):
                self._kept.pop(next(iter(self._kept)))
            projection.keep()
            self._kept[key] = projection
        return self._kept[key]


class _Scratch:
    """Memory for one piece of a matrix, shared by all projections of a projector."""

    def __init__(self) -> None:
        self._memory = np.empty((0, 1), dtype=np.complex128)

    def of(self, length: int, table: NDArray[np.complex128]) -> NDArray[np.complex128]:
        """An array of `length` rows of `table`; what it held is lost."""
        if self._memory.size < length * table.shape[1]:
            self._memory = np.empty((length, table.shape[1]), dtype=np.complex128)
        return self._memory.reshape(-1)[: length * table.shape[1]].reshape(length, -1)


class TrakProjection:
    """The matrix of one checkpoint, `[num_parameters, proj_dim]`, in blocks of columns.

    Attributes:
        scale: 1/√proj_dim.
        dtype: float32 or bfloat16, as the spec's precision says.
        nbytes: bytes that keeping the matrix takes.
    """

    def __init__(
        self,
        spec: ProjectorSpec,
        seeds: list[int],
        num_parameters: int,
        device: torch.device,
        scratch: _Scratch,
    ) -> None:
        self._spec = spec
        self._scratch = scratch
        self._seeds = seeds
        self._num_parameters = num_parameters
        self._device = device
        self.dtype = torch.float32 if spec.precision == "float32" else torch.bfloat16
        self._bits: list[NDArray[np.uint8]] | None = None
        self._count = num_parameters * spec.resolved_block_size
        self.scale = spec.proj_dim**-0.5
        self.nbytes = len(seeds) * -(-self._count // 8) if spec.proj_type == "rademacher" else 0

    def keep(self) -> None:
        """Draw all blocks, in parallel threads, and keep them. Normal entries are not kept."""
        if self._spec.proj_type == "rademacher":
            with ThreadPoolExecutor(torch.get_num_threads()) as threads:
                self._bits = list(
                    threads.map(lambda seed: signs.draw(seed, self._count), self._seeds)
                )

    def add(self, sketch: Tensor, start: int, gradients: Tensor) -> None:
        """Add `gradients @ matrix[start : start + n]` to the sketch."""
        stop = start + gradients.shape[1]
        gradients = gradients.to(self.dtype)
        size = self._spec.resolved_block_size
        for index in range(len(self._seeds)):
            first, last = index * size, min((index + 1) * size, self._spec.proj_dim)
            for begin, end, entries in self._entries(index):
                low, high = max(start, begin), min(stop, end)
                if low < high:
                    sketch[:, first:last] += (
                        gradients[:, low - start : high - start]
                        @ entries[low - begin : high - begin, : last - first]
                    )

    def first_rows(self) -> Tensor:
        """The matrix as float32 `[num_parameters, blocks × block size]`, for few parameters."""
        return torch.cat(
            [
                torch.cat([entries for _, _, entries in self._entries(index)]).to(torch.float32)
                for index in range(len(self._seeds))
            ],
            dim=1,
        )

    def _entries(self, index: int) -> Iterator[tuple[int, int, Tensor]]:
        """A block's rows in pieces: (first, one past the last, entries)."""
        # Multiples of 16 rows: whole bytes of bits, and the CPU's normal generator works on 16
        # numbers at a time.
        size = self._spec.resolved_block_size
        rows = _EXACT_BYTES // (4 * size) // 16 * 16 if self.dtype == torch.float32 else _FAST_ROWS
        bounds = [*range(0, self._num_parameters, rows), self._num_parameters]
        if self._spec.proj_type == "rademacher":
            bits = self._bits[index] if self._bits else signs.draw(self._seeds[index], self._count)
            table = _sign_table(self.dtype)
            for start, stop in pairwise(bounds):
                packed = bits[start * size // 8 : -(-stop * size // 8)]
                # Into the same memory every time: fresh pages cost more than the look-up.
                decoded = self._scratch.of(len(packed), table)
                np.take(table, packed, axis=0, out=decoded, mode="clip")
                entries = torch.from_numpy(decoded.reshape(-1).view(_NUMPY[self.dtype]))
                entries = entries[: (stop - start) * size].view(self.dtype).view(-1, size)
                yield start, stop, entries.to(self._device)
        else:
            if len(bounds) > 2 and bounds[-1] - bounds[-2] < 16:
                del bounds[-2]
            generator = torch.Generator().manual_seed(self._seeds[index])
            for start, stop in pairwise(bounds):
                entries = torch.empty(stop - start, size).normal_(generator=generator)
                yield start, stop, entries.to(self._device, self.dtype)


# numpy has no bfloat16: its bits travel as int16.
_NUMPY = {torch.float32: np.float32, torch.bfloat16: np.int16}


@lru_cache(maxsize=2)
def _sign_table(dtype: torch.dtype) -> NDArray[np.complex128]:
    """The eight entries of every byte of coins: heads +1, tails −1.

    Looking up a byte copies 16 or 32 bytes at once, so the table is of 16-byte numbers,
    `[256, 1 or 2]`, whatever the entries are.
    """
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1
    entries = torch.from_numpy(1 - 2 * bits).to(dtype).contiguous()
    return entries.view(torch.uint8).numpy().view(np.complex128)
