"""Makes the golden stores of the present format: `python -m tests.golden.make`.

The golden stores of a released format are never remade: they show that users' stores stay readable.
A new format gets new folders beside the old ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gradstore.store.changes.append import add_parts, open_part, part_path
from gradstore.store.changes.delete import delete
from gradstore.store.format.fingerprint import fingerprint
from gradstore.store.format.layout import Layout
from gradstore.store.format.manifest import Manifest
from gradstore.store.format.rows import Rows, given_dtype
from gradstore.store.format.spec import (
    FORMAT_VERSION,
    CheckpointSpec,
    Identity,
    LayoutSpec,
    PartSpec,
    StoreSpec,
)
from gradstore.store.part import Part
from gradstore.store.reader import Store
from gradstore.store.writer import create, write_shard

HERE = Path(__file__).parent
IDENTITY: Identity = {
    "model": {"class": "UNet2DModel", "num_parameters": 6},
    "checkpoints": [{"weights": "00", "number": 0}, {"weights": "11", "number": 1}],
    "objective": {"name": "diffusion", "loss": "l1"},
    "projector": {"name": "identity"},
    "events": {"kind": "planned", "timesteps": [250, 750]},
    "storage": {"dtype": "float16"},
}
ETAS = [0.5, 0.25]


def manifest() -> Manifest:
    """Ids and metadata; one value is not ASCII."""
    ids = [f"sample-{n}" for n in range(6)] + ["échantillon/7"]
    return Manifest(ids, [f"{n:032x}" for n in range(7)], {"label": [*"abcabc", None]})


def rows(checkpoint: int) -> Rows:
    """All rows of a checkpoint, from integers that float16 represents exactly."""
    sample, slot, entry = np.meshgrid(np.arange(7), np.arange(2), np.arange(6), indexing="ij")
    flat = sample[:, :, 0] + 10 * slot[:, :, 0] + 100 * checkpoint
    return Rows(
        direction=((7 * sample + 3 * slot + entry + checkpoint) % 11 / 8 - 0.5).astype(np.float16),
        norm=(flat / 4 + 1).astype(np.float32),
        loss=(flat / 8).astype(np.float32),
        timestep=(250 + 500 * slot[:, :, 0]).astype(np.int32),
    )


def _layout(samples: int, dtype: str) -> Layout:
    return Layout(samples, slots=2, dim=6, dtype=dtype, chunk_samples=2, shard_samples=4)


def _fill(part: Part) -> None:
    for checkpoint in range(len(ETAS)):
        whole = rows(checkpoint)
        dtype = given_dtype(part.layout.dtype)
        for shard in range(part.layout.shards):
            here = slice(*part.layout.span(shard))
            write_shard(
                part,
                checkpoint,
                shard,
                Rows(
                    whole.direction[here].astype(dtype),
                    whole.norm[here],
                    whole.loss[here],
                    whole.timestep[here],
                ),
            )


def make(path: Path, dtype: str = "float16") -> Store:
    """Write a store."""
    identity: Identity = {**IDENTITY, "storage": {"dtype": dtype}}
    spec = StoreSpec(
        fingerprint=fingerprint(identity),
        identity=identity,
        parts=[
            PartSpec(
                layout=LayoutSpec.of(_layout(7, dtype)),
                made_by={"versions": {"gradstore": "0.1.0"}},
            )
        ],
        checkpoints=[
            CheckpointSpec(path=f"run/{k}", eta=eta, number=k) for k, eta in enumerate(ETAS)
        ],
    )
    store = create(path, spec, manifest())
    _fill(store.parts[0])
    return store


def make_grown(path: Path) -> Store:
    """Write an int8 store, append three samples and delete two."""
    store = make(path, "int8")
    more = Manifest(["new-0", "new-1", "new-2"], ["a" * 32] * 3, {"year": [1999, 2000, None]})
    spec = PartSpec(path=part_path(store, more), layout=LayoutSpec.of(_layout(3, "int8")))
    part = open_part(store, spec, more)
    _fill(part)
    return delete(add_parts(store, [part]), ["sample-2", "new-1"])


STORES = {
    f"format-{FORMAT_VERSION}.gradstore": make,
    f"format-{FORMAT_VERSION}-grown.gradstore": make_grown,
}

if __name__ == "__main__":
    for name, maker in STORES.items():
        maker(HERE / name)
