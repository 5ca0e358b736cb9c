from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import gradstore
from gradstore.errors import StoreError, UnsealedError
from gradstore.fingerprint import fingerprint
from gradstore.layout import Layout
from gradstore.manifest import Manifest
from gradstore.reader import Store, open_store
from gradstore.rows import ARRAYS, Rows
from gradstore.spec import CheckpointSpec, Identity, LayoutSpec, StoreSpec
from gradstore.verify import verify
from gradstore.writer import create, write_shard

LAYOUT = Layout(samples=10, slots=2, dim=6, dtype="float16", chunk_samples=2, shard_samples=4)
IDENTITY: Identity = {"model": {"class": "M"}, "projector": {"name": "identity"}}


def spec(**changes: Any) -> StoreSpec:
    return StoreSpec(
        **(
            {
                "fingerprint": fingerprint(IDENTITY),
                "identity": IDENTITY,
                "layout": LayoutSpec.of(LAYOUT),
                "checkpoints": [CheckpointSpec(path="a", eta=0.5), CheckpointSpec(path="b", eta=1)],
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


def filled(path: Path, samples: Manifest | None = None) -> Store:
    made = create(path, spec(), samples or manifest())
    for checkpoint in range(2):
        for shard in range(3):
            write_shard(made, checkpoint, shard, rows(shard, checkpoint))
    return made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return filled(tmp_path / "s.gradstore")


def test_what_is_written_is_read(store: Store) -> None:
    opened = gradstore.open_store(store.path)
    opened.require_complete()
    assert opened.spec == spec()
    assert opened.manifest.ids == manifest().ids
    for name in ARRAYS:
        expected = np.concatenate([getattr(rows(shard, 1), name) for shard in range(3)])
        np.testing.assert_array_equal(getattr(opened.rows(1), name), expected)
        np.testing.assert_array_equal(getattr(opened.rows(1, 3, 9), name), expected[3:9])
        if name != "direction":
            np.testing.assert_array_equal(opened.column(name, 1), expected)
    assert [start for start, _ in opened.iter_rows(0)] == [0, 4, 8]


def test_bare_zarr_reads_it(store: Store) -> None:
    group = zarr.open_group(store.path, mode="r")
    array: Any = group["checkpoints/0/direction"]
    assert array.metadata.dimension_names == ("sample", "slot", "dim")
    np.testing.assert_array_equal(array[4:8], rows(1).direction)
    checkpoints: Any = group["checkpoints"]
    assert "direction" in str(checkpoints.tree())


def test_only_sealed_shards_are_read(tmp_path: Path) -> None:
    made = create(tmp_path / "s.gradstore", spec(), manifest())
    write_shard(made, 0, 1, rows(1))
    assert len(made.rows(0, 4, 8)) == 4
    assert made.missing() == [(0, 0), (0, 2), (1, 0), (1, 1), (1, 2)]
    for read in (
        lambda: made.rows(0, 3, 5),
        lambda: made.rows(1, 4, 8),
        lambda: made.column("norm", 0),
        made.require_complete,
        lambda: made.seal(0, 0),
    ):
        with pytest.raises(UnsealedError, match=r"lacks \d of 3 shards .*gradstore collect"):
            read()


def test_create_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.gradstore"
    with pytest.raises(StoreError, match="3 samples for a layout of 10"):
        create(path, spec(), manifest(3))
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be created"):
        create(tmp_path / "file" / "s.gradstore", spec(), manifest())
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_nothing_is_overwritten(store: Store) -> None:
    before = {p: p.read_bytes() for p in store.path.rglob("*") if p.is_file()}
    with pytest.raises(StoreError, match="exists and is a store; nothing was changed"):
        create(store.path, spec(), manifest())
    assert before == {p: p.read_bytes() for p in store.path.rglob("*") if p.is_file()}
    other = store.path.parent / "notes"
    other.mkdir()
    (other / "mine.txt").write_text("precious")
    with pytest.raises(StoreError, match="something that is not a store"):
        create(other, spec(), manifest())
    assert (other / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"direction": np.zeros((4, 2, 5), np.float16)}, r"direction is float16 \(4, 2, 5\)"),
        ({"direction": np.zeros((4, 2, 6), np.float32)}, "direction is float32"),
        ({"norm": np.zeros((3, 2), np.float32)}, "norm is"),
        ({"norm": np.full((4, 2), np.nan, np.float32)}, "norm is not finite"),
    ],
)
def test_wrong_rows_are_refused(store: Store, change: dict[str, Any], message: str) -> None:
    good = rows(0)
    arrays = {name: getattr(good, name) for name in ARRAYS} | change
    with pytest.raises(StoreError, match=message):
        write_shard(store, 0, 0, Rows(**arrays))


def test_verify_finds_nothing_wrong(store: Store) -> None:
    assert [report.problem for report in verify(store)] == [None] * 6


def _flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def test_verify_names_damage(store: Store) -> None:
    arrays = store.path / "checkpoints"
    _flip(arrays / "0/direction/c/0/0/0", 5)
    _flip(arrays / "0/norm/c/1/0", 3)
    (arrays / "0/loss/c/2/0").unlink()
    # A whole chunk of another shard passes every checksum inside Zarr, not the seal's.
    shutil.copy(arrays / "1/direction/c/0/0/0", arrays / "1/direction/c/1/0/0")
    seal = store.path / "seals/1/2/zarr.json"
    written = json.loads(seal.read_text())
    written["attributes"]["fingerprint"] = "0" * 64
    seal.write_text(json.dumps(written))
    shutil.rmtree(store.path / "seals/1/0")
    found = {(r.checkpoint, r.shard): r.problem for r in verify(open_store(store.path))}
    assert "cannot be read" in str(found[0, 0])
    assert "cannot be read" in str(found[0, 1])
    assert found[0, 2] == "loss differ from the seal's checksums"
    assert found[1, 0] == "not sealed"
    assert found[1, 1] == "direction differ from the seal's checksums"
    assert "another run" in str(found[1, 2])


def test_a_damaged_chunk_raises_when_read(store: Store) -> None:
    _flip(store.path / "checkpoints/0/direction/c/0/0/0", 5)
    with pytest.raises(StoreError, match="gradstore verify"):
        open_store(store.path).rows(0, 0, 2)


def test_missing_data_is_never_returned(store: Store) -> None:
    (store.path / "checkpoints/0/direction/c/1/0/0").unlink()
    (store.path / "checkpoints/1/norm/c/2/0").unlink()
    (store.path / "checkpoints/1/loss/c/1/0").unlink()
    (store.path / "checkpoints/1/timestep/c/0/0").unlink()
    for checkpoint, start, stop in ((0, 4, 8), (1, 8, 10), (1, 4, 8), (1, 0, 4)):
        with pytest.raises(StoreError, match="is sealed, but data is missing"):
            store.rows(checkpoint, start, stop)
    for name in ("norm", "loss", "timestep"):
        with pytest.raises(StoreError, match="is sealed, but data is missing"):
            store.column(name, 1)


def test_damaged_seals(store: Store) -> None:
    (store.path / "seals/0/1/zarr.json").write_text("{")
    found = {(r.checkpoint, r.shard): r.problem for r in verify(open_store(store.path))}
    assert "the seal of checkpoint 0, shard 1 cannot be read" in str(found[0, 1])
    assert sum(problem is not None for problem in found.values()) == 1
    (store.path / "seals/0/2/zarr.json").unlink()  # as a kill between two writes leaves it
    assert store.missing() == [(0, 2)]
    shutil.rmtree(store.path / "seals/1")
    with pytest.raises(StoreError, match="seals of checkpoint 1 cannot be listed"):
        store.sealed(1)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("format_version", 2, "store format 2; this gradstore reads format 1"),
        ("fingerprint", "xyz", "attribute fingerprint is wrong"),
        ("layout", {"samples": 10**15}, "attribute layout"),
        ("checkpoints", [], "attribute checkpoints is wrong"),
        ("surprise", 1, "attribute surprise is wrong"),
    ],
)
def test_wrong_attributes(store: Store, attribute: str, value: Any, message: str) -> None:
    file = store.path / "zarr.json"
    root = json.loads(file.read_text())
    root["attributes"]["gradstore"][attribute] = value
    file.write_text(json.dumps(root))
    with pytest.raises(StoreError, match=message):
        open_store(store.path)


@pytest.mark.parametrize("content", [None, "{}", '{"zarr_format": 3, "node_type": "group"}', "no"])
def test_not_a_store(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "x"
    path.mkdir()
    if content is not None:
        (path / "zarr.json").write_text(content)
    with pytest.raises(StoreError, match="is not a gradient store"):
        open_store(path)
    with pytest.raises(StoreError, match="is not a gradient store"):
        open_store(tmp_path / "missing")


def test_the_manifest_must_fit_the_layout(store: Store) -> None:
    manifest(9).save(store.path / "samples")
    with pytest.raises(StoreError, match="lists 9 samples, the layout says 10"):
        _ = open_store(store.path).manifest
