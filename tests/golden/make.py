"""Makes the golden store of the present format: `python -m tests.golden.make`.

Once a format is released its golden store is never made again: it shows that what users keep stays
readable. A new format gets a new folder beside the old ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gradstore.fingerprint import fingerprint
from gradstore.layout import Layout
from gradstore.manifest import Manifest
from gradstore.rows import Rows
from gradstore.spec import FORMAT_VERSION, CheckpointSpec, Identity, LayoutSpec, PartSpec, StoreSpec
from gradstore.writer import create, write_shard

HERE = Path(__file__).parent
LAYOUT = Layout(samples=7, slots=2, dim=6, dtype="float16", chunk_samples=2, shard_samples=4)
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
    """Ids and metadata, one text of them beyond ASCII."""
    ids = [f"sample-{n}" for n in range(6)] + ["échantillon/7"]
    return Manifest(ids, [f"{n:032x}" for n in range(7)], {"label": [*"abcabc", None]})


def rows(checkpoint: int) -> Rows:
    """All rows of a checkpoint, by whole-number arithmetic that float16 holds exactly."""
    sample, slot, entry = np.meshgrid(np.arange(7), np.arange(2), np.arange(6), indexing="ij")
    flat = sample[:, :, 0] + 10 * slot[:, :, 0] + 100 * checkpoint
    return Rows(
        direction=((7 * sample + 3 * slot + entry + checkpoint) % 11 / 8 - 0.5).astype(np.float16),
        norm=(flat / 4 + 1).astype(np.float32),
        loss=(flat / 8).astype(np.float32),
        timestep=(250 + 500 * slot[:, :, 0]).astype(np.int32),
    )


def make(path: Path) -> None:
    """Write the store."""
    spec = StoreSpec(
        fingerprint=fingerprint(IDENTITY),
        identity=IDENTITY,
        parts=[
            PartSpec(layout=LayoutSpec.of(LAYOUT), made_by={"versions": {"gradstore": "0.1.0"}})
        ],
        checkpoints=[
            CheckpointSpec(path=f"run/{k}", eta=eta, number=k) for k, eta in enumerate(ETAS)
        ],
    )
    store = create(path, spec, manifest())
    for checkpoint in range(len(ETAS)):
        whole = rows(checkpoint)
        for shard in range(LAYOUT.shards):
            here = slice(*LAYOUT.span(shard))
            part = Rows(
                whole.direction[here], whole.norm[here], whole.loss[here], whole.timestep[here]
            )
            write_shard(store.parts[0], checkpoint, shard, part)


if __name__ == "__main__":
    make(HERE / f"format-{FORMAT_VERSION}.gradstore")
