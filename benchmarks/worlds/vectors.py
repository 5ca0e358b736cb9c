"""Any number of random vectors like a real store's, for search benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from benchmarks.worlds.setting import digest
from gradstore import open_store
from gradstore.errors import StoreError
from gradstore.progress import progress
from gradstore.store.format.fingerprint import fingerprint, only_checkpoints
from gradstore.store.format.layout import Layout
from gradstore.store.format.manifest import Manifest
from gradstore.store.format.rows import Rows
from gradstore.store.format.spec import CheckpointSpec, LayoutSpec, PartSpec, StoreSpec
from gradstore.store.writer import create, write_shard

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from gradstore.store.reader import Store

_COMPONENTS: Final = 256


@dataclass(frozen=True)
class Spectrum:
    """Second moments of real directions, and real norms: the distribution of drawn vectors.

    A direction is `Σ_c z_c σ_c v_c` over the first components plus equal noise in all others.

    Attributes:
        components: the first eigenvectors times their standard deviations, `[components, dim]`.
        rest: standard deviation of each entry of the remainder.
        norms: norms of the store's rows.
    """

    components: NDArray[np.float32]
    rest: float
    norms: NDArray[np.float32]

    @classmethod
    def of(cls, store: Store) -> Spectrum:
        """Fit to a store's last checkpoint."""
        rows = store.rows(store.checkpoints - 1)
        direction = rows.direction[:, 0].astype(np.float32)
        count = min(_COMPONENTS, store.samples // 4, store.dim // 4)
        _, scale, basis = np.linalg.svd(direction, full_matrices=False)
        first = (scale[:count, None] * basis[:count]) / np.float32(len(direction) ** 0.5)
        left = (np.square(direction).sum() - np.square(scale[:count]).sum()) / direction.size
        return cls(first.astype(np.float32), float(left) ** 0.5, rows.norm[:, 0])

    def described(self) -> dict[str, float]:
        """Shares of the directions' squared length."""
        shares = np.square(self.components).sum(axis=1)
        whole = float(shares.sum() + self.rest**2 * self.components.shape[1])
        return {
            "components": len(shares),
            "first component": float(shares[0]) / whole,
            "first ten": float(shares[:10].sum()) / whole,
            "all components": float(shares.sum()) / whole,
            "norm, spread of its logarithm": float(np.log(self.norms).std()),
        }

    def rows(self, count: int, seed: int) -> Rows:
        """Drawn rows of one slot each."""
        generator = torch.Generator().manual_seed(seed)
        known, dim = self.components.shape
        vectors = torch.randn(count, dim, generator=generator).mul_(self.rest)
        mixed = torch.randn(count, known, generator=generator)
        vectors.addmm_(mixed, torch.from_numpy(self.components))
        draws = np.random.default_rng(seed)
        return Rows(
            direction=vectors.half().numpy()[:, None],
            norm=draws.choice(self.norms, (count, 1)),
            loss=draws.random((count, 1), dtype=np.float32),
            timestep=draws.integers(0, 1000, (count, 1), dtype=np.int32),
        )

    def asked(self, count: int, seed: int) -> NDArray[np.float32]:
        """TracIn features of drawn queries with ten timesteps each, float32 `[count, dim]`."""
        drawn = self.rows(10 * count, seed)
        vectors = drawn.direction[:, 0].astype(np.float32) * drawn.norm
        return np.asarray(vectors.reshape(count, 10, -1).mean(axis=1))


def generated(folder: Path, real: Store, spectrum: Spectrum, rows: int, seed: int) -> Store:
    """A store of drawn rows at one checkpoint, or the existing one.

    Args:
        folder: its folder.
        real: the store that the spectrum was fitted to.
        spectrum: the distribution.
        rows: number of samples.
        seed: seed of the draws.
    """
    identity = only_checkpoints(real.spec.identity, [real.checkpoints - 1])
    path = folder / f"drawn-{rows}-{digest(fingerprint(identity), seed)}.gradstore"
    layout = Layout.choose(rows, 1, real.dim, "float16")
    names = np.random.default_rng(seed)
    manifest = Manifest(
        [f"drawn-{n:07d}" for n in range(rows)], [names.bytes(16).hex() for _ in range(rows)]
    )
    spec = StoreSpec(
        fingerprint=fingerprint(identity),
        identity=identity,
        checkpoints=[CheckpointSpec(path="drawn", eta=1, number=real.numbers[-1])],
        parts=[PartSpec(layout=LayoutSpec.of(layout))],
    )
    try:
        store = open_store(path)
    except StoreError:
        folder.mkdir(parents=True, exist_ok=True)
        store = create(path, spec, manifest)
    (part,) = store.parts
    missing = part.missing(store.numbers[0])
    with progress(len(missing), f"drawing {rows:,} rows", "shards") as bar:
        for shard in missing:
            low, high = layout.span(shard)
            drawn = spectrum.rows(high - low, seed * 1_000_003 + shard)
            write_shard(part, store.numbers[0], shard, drawn)
            bar.update(1)
    return open_store(path)
