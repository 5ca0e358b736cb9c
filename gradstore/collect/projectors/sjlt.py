"""A sparse Johnson–Lindenstrauss transform: adds each parameter, with a sign, to one bucket.

With one entry per column (a CountSketch, Charikar et al. 2002) inner products are unbiased. Their
variance is at most that of a dense random matrix of the same dimension, (1 + ⟨g,h⟩²)/dim for unit
vectors. The cost does not depend on the dimension: one pass over the gradients.

Bucket and sign are an integer hash of seed, checkpoint and the parameter's position. They are the
same on every machine and device, and for any piece of the parameters alone. Buckets are taken
modulo dim, so folding a sketch to a divisor of dim *is* the smaller sketch.
"""

from __future__ import annotations

from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from gradstore.store.format.spec import Identity, ProjectorSpec


_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_PIECE = 1 << 16
# The alternative proj_dim is smaller by this factor.
FEWER = 4


class SjltProjector:
    """One signed bucket per parameter.

    Attributes:
        spec: its settings; only `proj_dim` and `proj_seed` matter.
    """

    thread_safe = True
    stays_in_memory = True

    def __init__(self, spec: ProjectorSpec) -> None:
        self.spec = spec

    def alternatives(self) -> list[tuple[str, SjltProjector]]:
        """Cheaper settings, each with its flags."""
        if self.spec.proj_dim < FEWER * 64:
            return []
        fewer = self.spec.model_copy(update={"proj_dim": self.spec.proj_dim // FEWER})
        return [(f"--proj-dim {fewer.proj_dim} (noisier scores)", SjltProjector(fewer))]

    def identity(self, num_parameters: int) -> Identity:
        """Settings, and a hash of the first buckets."""
        probe = signed_buckets(
            self.spec.proj_seed, 0, min(1000, num_parameters), self.spec.proj_dim
        )
        return {
            "name": "sjlt",
            "proj_dim": self.spec.proj_dim,
            "seed": self.spec.proj_seed,
            "probe": blake2b(probe.astype("<i8").tobytes(), digest_size=8).hexdigest(),
        }

    def dim(self, num_parameters: int) -> int:  # noqa: ARG002
        """`proj_dim`."""
        return self.spec.proj_dim

    def at(
        self,
        checkpoint: int,
        num_parameters: int,
        device: torch.device,
        memory: int,  # noqa: ARG002
    ) -> SjltProjection:
        """The checkpoint's buckets: 8 bytes per parameter."""
        return SjltProjection(self.spec, checkpoint, num_parameters, device)


class SjltProjection:
    """The buckets of one checkpoint.

    The buffer keeps positive and negative buckets separate. This needs no product with the signs,
    and one pass over the gradients.
    """

    scale = 1.0
    dtype = torch.float32

    def __init__(
        self, spec: ProjectorSpec, checkpoint: int, num_parameters: int, device: torch.device
    ) -> None:
        self._spec = spec
        self._checkpoint = checkpoint
        self._num_parameters = num_parameters
        self._device = device
        self.width = 2 * spec.proj_dim
        self.nbytes = 8 * num_parameters

    @cached_property
    def _buckets(self) -> Tensor:
        # int64, because torch on a CPU adds by int32 indices six times slower.
        spec = self._spec
        buckets = signed_buckets(
            spec.proj_seed, self._checkpoint, self._num_parameters, spec.proj_dim
        )
        return torch.from_numpy(buckets).to(self._device)

    def add(self, buffer: Tensor, start: int, gradients: Tensor) -> None:
        """Add each parameter of the piece to its bucket."""
        buffer.index_add_(1, self._buckets[start : start + gradients.shape[1]], gradients)

    def finish(self, buffer: Tensor) -> Tensor:
        """Positive minus negative buckets."""
        dim = self._spec.proj_dim
        return buffer[:, :dim] - buffer[:, dim:]


def signed_buckets(seed: int, checkpoint: int, count: int, dim: int) -> NDArray[np.int64]:
    """Bucket of each parameter, in 0 … dim − 1, plus dim if its sign is negative.

    The hash of parameter i is the i-th output of SplitMix64 (Steele, Lea and Flood 2014), seeded by
    a hash of seed and checkpoint.
    """
    key = blake2b(f"{seed}\x1f{checkpoint}".encode(), digest_size=8).digest()
    first = np.uint64(int.from_bytes(key, "little"))
    out = np.empty(count, dtype=np.int64)
    for start in range(0, count, _PIECE):  # pieces that fit in the cache
        stop = min(start + _PIECE, count)
        # Integer arithmetic modulo 2⁶⁴ is intended.
        mixed = np.arange(start + 1, stop + 1, dtype=np.uint64) * _GAMMA + first
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
        bucket = (mixed & np.uint64(2**63 - 1)) % np.uint64(dim)
        out[start:stop] = bucket + (mixed >> np.uint64(63)) * np.uint64(dim)
    return out
