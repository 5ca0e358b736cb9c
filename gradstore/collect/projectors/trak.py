"""TRAK's projection: the very matrix of `trak.projectors.BasicProjector`, drawn once and kept.

BasicProjector regenerates its matrix at every call, which costs seventy times the gradients
themselves. Here each block of columns is drawn once per checkpoint, from the seeds that
BasicProjector itself computes, and kept as int8 signs; raw sketches are equal bit for bit.

The matrix is always drawn by the CPU's generator and moved to where the gradients are, so that a
store built on a GPU can be queried from a CPU and the other way round. (BasicProjector on a GPU
draws another matrix.)
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from trak.projectors import BasicProjector

from gradstore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from gradstore.spec import Identity, ProjectorSpec

# A product is cut into pieces of this many bytes of float32 matrix. Up to 2 million parameters at
# 128 columns it is one product, as in BasicProjector; beyond, sums differ by float32 rounding.
_PIECE_BYTES = 1 << 30
_MAX_BLOCKS = 99


class TrakProjector:
    """A random matrix per checkpoint with entries ±1 or N(0, 1), scaled by 1/√dim.

    Attributes:
        spec: its settings.
    """

    def __init__(self, spec: ProjectorSpec) -> None:
        self.spec = spec
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
            self.spec, self._seeds(0), min(16, num_parameters), torch.device("cpu")
        )
        entries = torch.cat([piece for _, _, _, piece in projection.pieces()], dim=1)
        digest = blake2b(entries.to(torch.float32).numpy().tobytes(), digest_size=8)
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
                self.spec, self._seeds(checkpoint), num_parameters, device
            )
            if projection.nbytes > memory:
                return projection
            while self._kept and sum(p.nbytes for p in self._kept.values()) > (
                memory - projection.nbytes
            ):
                self._kept.pop(next(iter(self._kept)))
            projection.keep()
            self._kept[key] = projection
        return self._kept[key]


class TrakProjection:
    """The matrix of one checkpoint, `[num_parameters, proj_dim]`, in blocks of columns.

    Attributes:
        scale: 1/√proj_dim.
        nbytes: bytes that keeping the matrix takes.
    """

    def __init__(
        self, spec: ProjectorSpec, seeds: list[int], num_parameters: int, device: torch.device
    ) -> None:
        self._spec = spec
        self._seeds = seeds
        self._num_parameters = num_parameters
        self._device = device
        self._blocks: list[Tensor] | None = None
        # Bernoulli draws have the same bits in every dtype; normal ones only in float32.
        self._dtype = torch.int8 if spec.proj_type == "rademacher" else torch.float32
        self.scale = spec.proj_dim**-0.5
        self.nbytes = (
            len(seeds) * spec.resolved_block_size * num_parameters * self._dtype.itemsize
        )

    def keep(self) -> None:
        """Draw all blocks, in parallel threads, and keep them."""

        def draw(seed: int) -> Tensor:
            generator = torch.Generator().manual_seed(seed)
            return self._draw(self._num_parameters, generator).to(self._device)

        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            self._blocks = list(threads.map(draw, self._seeds))

    def _draw(self, rows: int, generator: torch.Generator) -> Tensor:
        entries = torch.empty(rows, self._spec.resolved_block_size, dtype=self._dtype)
        if self._spec.proj_type == "normal":
            return entries.normal_(generator=generator)
        return entries.bernoulli_(p=0.5, generator=generator).mul_(2).sub_(1)

    def pieces(self) -> Iterator[tuple[int, int, int, Tensor]]:
        """The matrix in pieces: (first parameter, first column, last column + 1, entries)."""
        block_size = self._spec.resolved_block_size
        # A multiple of 16 rows: the CPU's normal generator works on 16 numbers at a time.
        rows = max(16, _PIECE_BYTES // (4 * block_size) // 16 * 16)
        bounds = [*range(0, self._num_parameters, rows), self._num_parameters]
        if len(bounds) > 2 and bounds[-1] - bounds[-2] < 16:
            del bounds[-2]
        for index, seed in enumerate(self._seeds):
            first = index * block_size
            last = min(first + block_size, self._spec.proj_dim)
            generator = torch.Generator().manual_seed(seed)
            for start, stop in pairwise(bounds):
                if self._blocks is None:
                    entries = self._draw(stop - start, generator).to(self._device)
                else:
                    entries = self._blocks[index][start:stop]
                yield start, first, last, entries[:, : last - first]

    def add(self, sketch: Tensor, start: int, gradients: Tensor) -> None:
        """Add `gradients @ matrix[start : start + n]` to the sketch."""
        stop = start + gradients.shape[1]
        dtype = torch.float32 if self._spec.precision == "float32" else torch.bfloat16
        gradients = gradients.to(dtype)
        for begin, first, last, entries in self.pieces():
            low, high = max(start, begin), min(stop, begin + len(entries))
            if low < high:
                columns = entries[low - begin : high - begin].to(dtype)
                sketch[:, first:last] += gradients[:, low - start : high - start] @ columns
