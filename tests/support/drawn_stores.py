"""Stores of random rows, larger than those in the store's own tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gradstore.store.format.fingerprint import fingerprint
from gradstore.store.format.layout import Layout
from gradstore.store.format.manifest import Manifest
from gradstore.store.format.rows import Rows
from gradstore.store.format.spec import Identity, LayoutSpec, PartSpec
from gradstore.store.writer import create, write_shard
from indexer import Features
from tests.support.written_stores import IDENTITY, spec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gradstore.store.reader import Store
    from indexer import Measure


def random_store(
    path: Path,
    samples: int = 300,
    *,
    slots: int = 1,
    dim: int = 64,
    dtype: str = "float16",
    seed: int = 0,
    metadata: dict[str, list[object]] | None = None,
    even: bool = False,
) -> Store:
    """Unit directions with a common part, varied norms, and timesteps.

    Args:
        path: path of the store.
        samples: number of samples.
        slots: rows per sample at each of two checkpoints.
        dim: length of a direction.
        dtype: dtype of directions.
        seed: seed of all random draws.
        metadata: columns of the manifest.
        even: whether every sample has the same timesteps.
    """
    layout = Layout(
        samples=samples, slots=slots, dim=dim, dtype=dtype, chunk_samples=2, shard_samples=128
    )
    names = [f"s{n}" for n in range(samples)]
    manifest = Manifest(names, [str(row) for row in range(samples)], metadata or {})
    identity: Identity = {
        **IDENTITY,
        "model": {"num_parameters": 1000},
        "events": {"kind": "planned"},
    }
    parts = [PartSpec(layout=LayoutSpec.of(layout))]
    made = spec(parts=parts, identity=identity, fingerprint=fingerprint(identity))
    store = create(path, made, manifest)
    generator = np.random.default_rng(seed)
    common = np.random.default_rng(99).standard_normal((2, dim))
    for checkpoint in range(2):
        for shard in range(layout.shards):
            start, stop = layout.span(shard)
            shape = (stop - start, slots)
            direction = generator.standard_normal((*shape, dim)) + 0.5 * common[checkpoint]
            direction /= np.linalg.norm(direction, axis=2, keepdims=True)
            timestep = generator.integers(0, 1000, shape, dtype=np.int32)
            if even:
                timestep[:] = np.arange(slots) * (1000 // slots)
            given = np.float32 if dtype == "int8" else np.dtype(dtype)
            rows = Rows(
                direction.astype(given),
                generator.lognormal(0, 1, shape).astype(np.float32),
                generator.random(shape, dtype=np.float32),
                timestep,
            )
            write_shard(store.parts[0], checkpoint, shard, rows)
    return store


def features(
    store: Store,
    measure: Measure,
    start: int = 0,
    stop: int | None = None,
    *,
    etas: Sequence[float] | None = None,
) -> NDArray[np.float32]:
    """Features of some samples under an unfitted measure, averaged over slots."""
    weights = store.etas if etas is None else etas
    return Features(measure, tuple(weights)).range(store, start, stop)
