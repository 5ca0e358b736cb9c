"""Small stores, written row by row and changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gradstore.store.changes.append import add_parts, open_part, part_path
from gradstore.store.format.fingerprint import fingerprint
from gradstore.store.format.layout import Layout
from gradstore.store.format.manifest import Manifest
from gradstore.store.format.root import root_digest
from gradstore.store.format.rows import ARRAYS, Rows
from gradstore.store.format.spec import CheckpointSpec, Identity, LayoutSpec, PartSpec, StoreSpec
from gradstore.store.reader import Store
from gradstore.store.writer import create, write_shard

LAYOUT = Layout(samples=10, slots=2, dim=6, dtype="float16", chunk_samples=2, shard_samples=4)


IDENTITY: Identity = {
    "model": {"class": "M"},
    "projector": {"name": "identity"},
    "checkpoints": [{"weights": "a", "number": 0}, {"weights": "b", "number": 1}],
}


def spec(**changes: Any) -> StoreSpec:
    return StoreSpec(
        **(
            {
                "fingerprint": fingerprint(IDENTITY),
                "identity": IDENTITY,
                "parts": [PartSpec(layout=LayoutSpec.of(LAYOUT))],
                "checkpoints": [
                    CheckpointSpec(path="a", eta=0.5, number=0),
                    CheckpointSpec(path="b", eta=1, number=1),
                ],
            }
            | changes
        )
    )


def manifest(count: int = 10) -> Manifest:
    return Manifest([f"s{n}" for n in range(count)], ["0"] * count)


def rows(shard: int, seed: int = 0) -> Rows:
    start, stop = LAYOUT.span(shard)
    generator = np.random.default_rng(100 * seed + shard)
    return Rows(
        direction=generator.standard_normal((stop - start, 2, 6)).astype(np.float16),
        norm=generator.random((stop - start, 2), dtype=np.float32),
        loss=generator.random((stop - start, 2), dtype=np.float32),
        timestep=generator.integers(0, 1000, (stop - start, 2), dtype=np.int32),
    )


def filled(path: Path | str, samples: Manifest | None = None) -> Store:
    made = create(path, spec(), samples or manifest())
    for checkpoint in range(2):
        for shard in range(3):
            write_shard(made.parts[0], checkpoint, shard, rows(shard, checkpoint))
    return made


def some_rows(count: int, seed: int) -> Rows:
    generator = np.random.default_rng(seed)
    return Rows(
        direction=generator.standard_normal((count, 2, 6)).astype(np.float16),
        norm=generator.random((count, 2), dtype=np.float32),
        loss=generator.random((count, 2), dtype=np.float32),
        timestep=generator.integers(0, 1000, (count, 2), dtype=np.int32),
    )


def grown(store: Store, ids: list[str], seed: int = 7) -> Store:
    """The store with another part, like one by append."""
    names = Manifest(ids, ["1"] * len(ids), {"label": ["new"] * len(ids)})
    layout = Layout(len(ids), 2, 6, "float16", 1, 2)
    part = open_part(
        store, PartSpec(path=part_path(store, names), layout=LayoutSpec.of(layout)), names
    )
    for number in store.numbers:
        whole = some_rows(len(ids), seed + number)
        for shard in range(layout.shards):
            low, high = layout.span(shard)
            rows = Rows(**{name: getattr(whole, name)[low:high] for name in ARRAYS})
            write_shard(part, number, shard, rows)
    return add_parts(store, [part])


def everything(store: Store, rows: Any = slice(None)) -> dict[str, Any]:
    return {
        f"{checkpoint}/{name}": getattr(store.rows(checkpoint), name)[rows]
        for checkpoint in range(store.checkpoints)
        for name in ARRAYS
    }


def require_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def other_store(path: Path | str, ids: list[str], **changes: Any) -> Store:
    layout = Layout(len(ids), 2, 6, "float16", 1, 3)
    made = create(
        path,
        spec(parts=[PartSpec(layout=LayoutSpec.of(layout))], **changes),
        Manifest(ids, ["2"] * len(ids)),
    )
    for number in made.numbers:
        whole = some_rows(len(ids), 50 + number)
        for shard in range(layout.shards):
            low, high = layout.span(shard)
            rows = Rows(**{name: getattr(whole, name)[low:high] for name in ARRAYS})
            write_shard(made.parts[0], number, shard, rows)
    return made


def edit_root(path: Path, change: Callable[[Any], object], *, recorded: bool = True) -> None:
    """Change a root object by hand, with the right digest.

    Args:
        path: the store.
        change: changes the attribute `gradstore`.
        recorded: remove the commit's record, which the changed root contradicts.
    """
    document = json.loads((path / "zarr.json").read_text())
    state = document["attributes"]["gradstore"]
    change(state)
    if "digest" in state:
        state["digest"] = root_digest(state)
    (path / "zarr.json").write_text(json.dumps(document))
    if recorded:
        (path / f"commits/{state['revision']}.json").unlink(missing_ok=True)


def contains(folder: Path, content: bytes) -> list[str]:
    return [str(p) for p in folder.rglob("*") if p.is_file() and content in p.read_bytes()]
