"""TRAK's projection: the matrix of `trak.projectors.BasicProjector`, drawn once and kept.

BasicProjector regenerates its matrix at every call, which costs seventy times as much as the
gradients. Here each block of columns is drawn once per checkpoint, from BasicProjector's own seeds,
and kept as one bit per entry. Raw sketches are equal bit for bit.

The CPU's generator always draws the matrix, which is then moved to the gradients' device. A store
built on a GPU can therefore be queried on a CPU and vice versa. (BasicProjector on a GPU draws
another matrix.)
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from trak.projectors import BasicProjector

from gradstore.arithmetic import precision_of
from gradstore.collect.projectors import signs
from gradstore.collect.projectors.sjlt import FEWER, SjltProjector
from gradstore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from gradstore.store.format.spec import Identity, ProjectorSpec

# A float32 product is split at this many bytes of matrix, or at a quarter of the memory. Up to 2
# million parameters at 128 columns it is one product, as in BasicProjector; beyond, sums differ by
# float32 rounding.
_EXACT_BYTES = 1 << 30
# A bfloat16 product is split into pieces of this many rows, 4 MB at 128 columns, so that decoded
# entries are still in the cache when they are multiplied.
_FAST_ROWS = 1 << 14
# Bytes of signs per table look-up.
_LOOKED_UP = 1 << 16
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
        # For one parameter it costs nothing; its block seeds do not depend on the length.
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

        The hash detects a changed generator stream, whichever version changed it.
        """
        projection = TrakProjection(
            self.spec.model_copy(update={"precision": "float32"}),
            self._seeds(0),
            min(16, num_parameters),
            torch.device("cpu"),
            scratch=_Scratch(),
            memory=1 << 20,
        )
        digest = blake2b(projection.first_rows().numpy().tobytes(), digest_size=8)
        return {
            "name": "trak",
            "proj_dim": self.spec.proj_dim,
            "proj_type": self.spec.proj_type,
            "seed": self.spec.proj_seed,
            "block_size": self.spec.resolved_block_size,
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
        if key in self._kept and self._kept[key].nbytes <= max(memory, 0):
            return self._kept[key]
        projection = TrakProjection(
            self.spec,
            self._seeds(checkpoint),
            num_parameters,
            device,
            scratch=self._scratch,
            memory=memory,
        )
        if self.spec.proj_type == "normal" or key in self._kept:
            return projection
        room = memory - projection.scratch_nbytes
        if projection.matrix_nbytes > room:
            return projection
        while self._kept and self._kept_nbytes() > room - projection.matrix_nbytes:
            self._kept.pop(next(iter(self._kept)))
        projection.kept = True
        self._kept[key] = projection
        for kept in self._kept.values():
            kept.nbytes = self._kept_nbytes() + kept.scratch_nbytes
        return projection

    def alternatives(self) -> list[tuple[str, SjltProjector | TrakProjector]]:
        """Cheaper settings, each with its flags."""
        sparse = self.spec.model_copy(update={"projector": "sjlt", "block_size": None})
        found: list[tuple[str, SjltProjector | TrakProjector]] = [
            ("--projector sjlt", SjltProjector(sparse))
        ]
        if self.spec.proj_dim >= FEWER * 64:
            fewer = self.spec.model_copy(update={"proj_dim": self.spec.proj_dim // FEWER})
            flags = f"--proj-dim {fewer.proj_dim} (noisier scores)"
            found.append((flags, TrakProjector(fewer)))
        return found

    def excerpt(self) -> tuple[TrakProjector, float]:
        """A projector of a few blocks, for timing, and the factor of work for all blocks."""
        size = self.spec.resolved_block_size
        blocks = len(self._seeds(0))
        few = min(blocks, torch.get_num_threads())
        spec = self.spec.model_copy(update={"proj_dim": few * size, "block_size": size})
        return TrakProjector(spec), blocks / few

    def _kept_nbytes(self) -> int:
        return sum(projection.matrix_nbytes for projection in self._kept.values())


class _Scratch:
    """Memory for one piece of a matrix, shared by all projections of a projector."""

    def __init__(self) -> None:
        self._memory = np.empty((0, 1), dtype=np.complex128)

    def of(self, length: int, table: NDArray[np.complex128]) -> NDArray[np.complex128]:
        """An array of `length` rows of `table`; overwrites its previous content."""
        if self._memory.size < length * table.shape[1]:
            self._memory = np.empty((length, table.shape[1]), dtype=np.complex128)
        return self._memory.reshape(-1)[: length * table.shape[1]].reshape(length, -1)


class TrakProjection:
    """The matrix of one checkpoint, `[num_parameters, proj_dim]`, in blocks of columns.

    The buffer holds the gradients: the matrix is decoded once for all rows in it, and wide
    products are faster.

    Attributes:
        scale: 1/√proj_dim.
        width: num_parameters.
        dtype: float32 or bfloat16, from the spec's precision or the speed of the device.
        matrix_nbytes: bytes to keep the matrix.
        scratch_nbytes: additional bytes of a product.
        nbytes: bytes of both, and of the matrices kept for other checkpoints.
        kept: whether the matrix is kept once it is drawn.
    """

    def __init__(
        self,
        spec: ProjectorSpec,
        seeds: list[int],
        num_parameters: int,
        device: torch.device,
        *,
        scratch: _Scratch,
        memory: int,
    ) -> None:
        self._spec = spec
        self._scratch = scratch
        self._seeds = seeds
        self._device = device
        self.width = num_parameters
        precision = precision_of(spec.precision, device.type)
        self.dtype = torch.float32 if precision == "float32" else torch.bfloat16
        self.kept = False
        self._bits: list[NDArray[np.uint8]] | None = None
        self._count = num_parameters * spec.resolved_block_size
        self.scale = spec.proj_dim**-0.5
        # Multiples of 16 rows: bits fill whole bytes, and the CPU's normal generator works on 16
        # numbers at a time.
        size = spec.resolved_block_size
        block = -(-self._count // 8) if spec.proj_type == "rademacher" else 0
        drawing = block + signs.scratch_nbytes(self._count) if block else 0
        exact = min(_EXACT_BYTES, max(memory - drawing, 0) // 4) // (4 * size) // 16 * 16
        rows = max(1024, exact) if self.dtype == torch.float32 else _FAST_ROWS
        self._piece_rows = min(rows, -(-num_parameters // 16) * 16)
        piece = self._piece_rows * size * self.dtype.itemsize
        if spec.proj_type == "normal":  # drawn as float32 every time
            self.matrix_nbytes = 0
            self.scratch_nbytes = piece + 4 * self._piece_rows * size
        else:
            self.matrix_nbytes = len(seeds) * block
            # A matrix that is not kept is drawn by all threads that fit in memory, one block each.
            self._together = max(1, min(torch.get_num_threads(), (memory - piece) // drawing))
            self.scratch_nbytes = piece + min(self._together, len(seeds)) * (drawing - block)
        self.nbytes = self.scratch_nbytes
        if spec.proj_type == "rademacher":
            self.nbytes += min(self._together, len(seeds)) * block

    @property
    def redrawn(self) -> bool:
        """Whether the matrix does not fit in memory and is redrawn for every buffer."""
        return bool(self.matrix_nbytes) and not self.kept

    def _draw(self, seeds: list[int]) -> list[NDArray[np.uint8]]:
        with ThreadPoolExecutor(self._together) as threads:
            return list(threads.map(lambda seed: signs.draw(seed, self._count), seeds))

    def add(self, buffer: Tensor, start: int, gradients: Tensor) -> None:
        """See `Projection`."""
        buffer[:, start : start + gradients.shape[1]] = gradients

    def finish(self, buffer: Tensor) -> Tensor:
        """`buffer @ matrix`, block by block."""
        sketch = torch.zeros(len(buffer), self._spec.proj_dim, device=buffer.device)
        size = self._spec.resolved_block_size
        for index, pieces in enumerate(self._blocks()):
            first, last = index * size, min((index + 1) * size, self._spec.proj_dim)
            for start, stop, entries in pieces:
                sketch[:, first:last] += buffer[:, start:stop] @ entries[:, : last - first]
        return sketch

    def first_rows(self) -> Tensor:
        """The matrix as float32 `[num_parameters, blocks × block size]`, for few parameters."""
        return torch.cat(
            [
                torch.cat([entries.to(torch.float32) for _, _, entries in pieces])
                for pieces in self._blocks()
            ],
            dim=1,
        )

    def _blocks(self) -> Iterator[Iterator[tuple[int, int, Tensor]]]:
        """The rows of each block, in pieces: (first, last exclusive, entries)."""
        if self._spec.proj_type == "normal":
            for seed in self._seeds:
                yield self._normal(seed)
        elif self.kept:
            self._bits = self._bits or self._draw(self._seeds)
            for bits in self._bits:
                yield self._decoded(bits)
        else:
            for first in range(0, len(self._seeds), self._together):
                drawn = self._draw(self._seeds[first : first + self._together])
                while drawn:  # frees each block after use, before others are drawn
                    yield self._decoded(drawn.pop(0))

    def _decoded(self, bits: NDArray[np.uint8]) -> Iterator[tuple[int, int, Tensor]]:
        size = self._spec.resolved_block_size
        table = _sign_table(self.dtype)
        for start, stop in pairwise([*range(0, self.width, self._piece_rows), self.width]):
            packed = bits[start * size // 8 : -(-stop * size // 8)]
            # Reuses the same memory: fresh pages cost more than the look-up.
            decoded = self._scratch.of(len(packed), table)
            for low in range(0, len(packed), _LOOKED_UP):  # numpy converts them to 8-byte indices
                high = low + _LOOKED_UP
                np.take(table, packed[low:high], axis=0, out=decoded[low:high], mode="clip")
            entries = torch.from_numpy(decoded.reshape(-1).view(_NUMPY[self.dtype]))
            entries = entries[: (stop - start) * size].view(self.dtype).view(-1, size)
            yield start, stop, entries.to(self._device)

    def _normal(self, seed: int) -> Iterator[tuple[int, int, Tensor]]:
        size = self._spec.resolved_block_size
        bounds = [*range(0, self.width, self._piece_rows), self.width]
        if len(bounds) > 2 and bounds[-1] - bounds[-2] < 16:
            del bounds[-2]
        generator = torch.Generator().manual_seed(seed)
        for start, stop in pairwise(bounds):
            entries = torch.empty(stop - start, size).normal_(generator=generator)
            yield start, stop, entries.to(self._device, self.dtype)


# numpy has no bfloat16: its bits are held as int16.
_NUMPY = {torch.float32: np.float32, torch.bfloat16: np.int16}


@lru_cache(maxsize=2)
def _sign_table(dtype: torch.dtype) -> NDArray[np.complex128]:
    """The eight entries of every byte of coins: heads +1, tails −1.

    A look-up copies 16 or 32 bytes at once, so the table consists of 16-byte numbers,
    `[256, 1 or 2]`, for every dtype of the entries.
    """
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1
    entries = torch.from_numpy(1 - 2 * bits).to(dtype).contiguous()
    return entries.view(torch.uint8).numpy().view(np.complex128)
