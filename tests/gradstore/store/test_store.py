from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
import zarr

import gradstore
from gradstore.errors import StoreError, UnsealedError
from gradstore.store.format.manifest import Manifest, manifest_spec
from gradstore.store.format.rows import ARRAYS, Rows
from gradstore.store.format.spec import LayoutSpec
from gradstore.store.opening import open_store
from gradstore.store.reader import Store
from gradstore.store.verify import describe_anew, verify
from gradstore.store.writer import create, unseal, write_shard
from tests.support.written_stores import LAYOUT, filled, manifest, rows, spec

SPEC_LAYOUT = LayoutSpec.of(LAYOUT).model_dump()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return filled(tmp_path / "s.gradstore")


def test_what_is_written_is_read(store: Store) -> None:
    opened = gradstore.open_store(store.path)
    opened.require_complete()
    content = (store.path / "samples/manifest.parquet").read_bytes()
    listed = {"manifest_sha256": sha256(content).hexdigest(), "manifest": manifest_spec(content)}
    described = spec(parts=[spec().parts[0].model_copy(update=listed)])
    own = {"digest": opened.spec.digest, "samples_hash": manifest().hash()}
    assert opened.spec == described.model_copy(update=own)
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
    write_shard(made.parts[0], 0, 1, rows(1))
    assert len(made.rows(0, 4, 8)) == 4
    assert made.missing() == [(0, 0, 0), (0, 0, 2), (1, 0, 0), (1, 0, 1), (1, 0, 2)]
    for read in (
        lambda: made.rows(0, 3, 5),
        lambda: made.rows(1, 4, 8),
        lambda: made.column("norm", 0),
        made.require_complete,
        lambda: made.parts[0].seal(0, 0),
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
        write_shard(store.parts[0], 0, 0, Rows(**arrays))


def test_verify_finds_nothing_wrong(store: Store) -> None:
    assert [report.problem for report in verify(store)] == [None] * 6


def _flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def test_verify_names_damage(store: Store) -> None:
    arrays = store.path / "checkpoints"
    _flip(arrays / "0/direction/c.0.0.0", 5)
    _flip(arrays / "0/columns/c.1.0.0", 3)
    (arrays / "0/columns/c.2.0.0").unlink()
    # A chunk of another shard passes all of Zarr's checksums, but not the seal's.
    shutil.copy(arrays / "1/direction/c.0.0.0", arrays / "1/direction/c.1.0.0")
    seal = store.path / "seals/1/2.json"
    written = json.loads(seal.read_text())
    written["fingerprint"] = "0" * 64
    seal.write_text(json.dumps(written))
    (store.path / "seals/1/0.json").unlink()
    found = {(r.checkpoint, r.shard): r.problem for r in verify(open_store(store.path))}
    assert found[0, 0] == "direction differs from its seal"
    assert found[0, 1] == "columns differs from its seal"
    assert found[0, 2] == "columns cannot be read (No such file or directory)"
    assert found[1, 0] == "not sealed"
    assert found[1, 1] == "direction differs from its seal"
    assert "another run" in str(found[1, 2])


def test_verify_names_what_was_cut_short_or_miscounted(store: Store) -> None:
    file = store.path / "checkpoints/0/direction/c.2.0.0"
    file.write_bytes(file.read_bytes()[:-7])
    for shard, change in ((0, {"rows": 3}), (1, {"objects": {}})):
        seal = store.path / f"seals/1/{shard}.json"
        seal.write_text(json.dumps(json.loads(seal.read_text()) | change))
    found = {(r.checkpoint, r.shard): r.problem for r in verify(open_store(store.path))}
    assert re.fullmatch(r"direction has \d+ bytes, not \d+", str(found[0, 2]))
    assert found[1, 0] == "its seal counts 3 rows, the layout 4"
    assert "its seal names , not direction" in str(found[1, 1])


def _objects(root: Path, checkpoint: int, shard: int) -> list[Path]:
    """The files of a shard, including its seal."""
    arrays = sorted((root / "checkpoints" / str(checkpoint)).glob(f"*/c.{shard}.*"))
    assert len(arrays) == 2
    return [*arrays, root / "seals" / str(checkpoint) / f"{shard}.json"]


def test_verify_names_whole_shards_that_stand_in_a_wrong_place(store: Store) -> None:
    """With valid seals for their bytes: of another shard and of another store."""
    others = Manifest([f"t{n}" for n in range(10)], ["0"] * 10)
    alike = filled(store.path.with_name("alike.gradstore"), others)  # same fingerprint
    places = (_objects(store.path, 0, 0), _objects(store.path, 0, 1))
    for one, other in zip(*places, strict=True):
        kept = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(kept)
    for source, target in zip(_objects(alike.path, 1, 2), _objects(store.path, 1, 2), strict=True):
        shutil.copy(source, target)
    found = {(r.checkpoint, r.shard): r.problem for r in verify(open_store(store.path))}
    wrong = {task for task, problem in found.items() if problem}
    assert wrong == {(0, 0), (0, 1), (1, 2)}
    for task in wrong:
        assert "comes from another shard or another store" in str(found[task])


def test_a_seal_that_does_not_name_its_samples_is_believed(store: Store) -> None:
    """As in older stores, which did not record it."""
    for seal in (store.path / "seals").glob("*/*.json"):
        written = json.loads(seal.read_text())
        del written["samples_sha256"]
        seal.write_text(json.dumps(written))
    assert [report.problem for report in verify(open_store(store.path))] == [None] * 6


def test_verify_finds_a_false_description(store: Store) -> None:
    file = store.path / "checkpoints/1/columns/zarr.json"
    described = json.loads(file.read_text())
    file.write_text(json.dumps(described | {"shape": [10, 3]}))
    with pytest.raises(StoreError, match="columns/zarr.json does not describe the array.*--repair"):
        list(verify(store))
    (store.path / "checkpoints/0/zarr.json").unlink()
    with pytest.raises(StoreError, match="0/zarr.json cannot be read: No such file.*--repair"):
        list(verify(store))
    assert describe_anew(store) == ["checkpoints/0/zarr.json", "checkpoints/1/columns/zarr.json"]
    assert [report.problem for report in verify(store)] == [None] * 6
    assert json.loads(file.read_text()) == described
    array: Any = zarr.open_group(store.path, mode="r")["checkpoints/0/columns"]
    np.testing.assert_array_equal(array[:4, :, 0], rows(0).norm)
    assert describe_anew(store) == []


def test_a_damaged_chunk_raises_when_read(store: Store) -> None:
    _flip(store.path / "checkpoints/0/direction/c.0.0.0", 5)
    with pytest.raises(StoreError, match="gradstore verify"):
        open_store(store.path).rows(0, 0, 2)


def test_what_is_damaged_after_it_was_read_raises_as_well(store: Store) -> None:
    """Checksums of neighbours are checked once, and again after their file changes."""
    expected = store.rows(0, 0, 3).direction
    for _ in range(2):
        np.testing.assert_array_equal(store.rows(0, 0, 3).direction, expected)
    sleep(0.02)  # as coarse as a file clock may be
    _flip(store.path / "checkpoints/0/direction/c.0.0.0", 5)
    for _ in range(2):
        with pytest.raises(StoreError, match="a checksum differs"):
            store.rows(0, 0, 3)


@pytest.mark.parametrize("samples", [[4, 5, 6], [7], [1, 2], [0, 9], [3, 4], [4, 5, 6, 7]])
@pytest.mark.parametrize("nbytes", [1, 1000])
def test_directions_are_read_tile_by_tile(store: Store, samples: list[int], nbytes: int) -> None:
    expected = store.take(1, samples).direction
    scratch = store.scratch(nbytes)
    for _ in range(2):  # with and without checksums
        found = [tile.copy() for tile in store.tiles(1, np.array(samples), scratch)]
        np.testing.assert_array_equal(np.concatenate(found), expected)


def test_tiles_of_a_file_that_changes_while_it_is_read_raise(store: Store) -> None:
    scratch, samples = store.scratch(1), np.arange(4)
    assert len(list(store.tiles(0, samples, scratch))) > 1
    tiles = store.tiles(0, samples, scratch)
    next(tiles)
    sleep(0.02)  # as coarse as a file clock may be
    _flip(store.path / "checkpoints/0/direction/c.0.0.0", 5)
    with pytest.raises(StoreError, match="changed while it was read"):
        list(tiles)


def test_missing_data_is_never_returned(store: Store) -> None:
    (store.path / "checkpoints/0/direction/c.1.0.0").unlink()
    for shard in range(3):
        (store.path / f"checkpoints/1/columns/c.{shard}.0.0").unlink()
    for checkpoint, start, stop in ((0, 4, 8), (1, 8, 10), (1, 4, 8), (1, 0, 4)):
        with pytest.raises(StoreError, match="cannot be read: No such file"):
            store.rows(checkpoint, start, stop)
        with pytest.raises(StoreError, match="cannot be read: No such file"):
            store.take(checkpoint, range(start, stop))
    for name in ("norm", "loss", "timestep"):
        with pytest.raises(StoreError, match="cannot be read: No such file"):
            store.column(name, 1)


def test_an_unknown_column_is_named(store: Store) -> None:
    with pytest.raises(StoreError):
        store.column("los", 0)
    np.testing.assert_array_equal(store.column("raw_norm", 0), store.column("norm", 0))


def test_damaged_seals(store: Store) -> None:
    (store.path / "seals/0/1.json").write_text("{")
    found = {(r.checkpoint, r.shard): r.problem for r in verify(open_store(store.path))}
    assert "the seal of checkpoint 0, shard 1 is damaged" in str(found[0, 1])
    assert sum(problem is not None for problem in found.values()) == 1
    (store.path / "seals/0/2.json").unlink()
    assert store.missing() == [(0, 0, 2)]
    shutil.rmtree(store.path)  # a lost mount
    with pytest.raises(StoreError, match="seals of checkpoint 1 cannot be listed"):
        store.rows(1)


def test_scattered_rows(store: Store) -> None:
    wanted = np.array([9, 0, 5, 5, 3, 8])
    found = store.take(1, wanted)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(store.rows(1), name)[wanted])
    with pytest.raises(StoreError, match=r"holds samples 0 … 9; others were asked for"):
        store.take(1, [10])
    with pytest.raises(StoreError, match="no 2"):
        store.take(2, [1])
    with pytest.raises(StoreError, match="3:11 were asked for"):
        store.rows(0, 3, 11)


def test_unsealed_samples_are_skipped_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = filled(tmp_path / "s.gradstore")
    unseal(made.parts[0], 1, 1)
    with pytest.raises(UnsealedError):
        open_store(made.path).rows(1)
    opened = open_store(made.path, skip_unsealed=True)
    opened.require_complete()
    assert list(opened.manifest.ids) == [f"s{n}" for n in (0, 1, 2, 3, 8, 9)]
    assert "4 of 10 samples are skipped" in caplog.text
    expected = np.concatenate([rows(0, 1).norm, rows(2, 1).norm])
    np.testing.assert_array_equal(opened.rows(1).norm, expected)
    np.testing.assert_array_equal(opened.column("norm", 1), expected)
    np.testing.assert_array_equal(opened.take(1, [4, 0]).norm, expected[[4, 0]])
    assert list(opened.blocks()) == [(0, 4), (4, 6)]
    for checkpoint in (0, 1):
        for shard in range(3):
            unseal(made.parts[0], checkpoint, shard)
    with pytest.raises(UnsealedError, match="has no sample to read"):
        _ = open_store(made.path, skip_unsealed=True).samples


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("format_version", 3, "store format 3; this gradstore reads formats 1 to 2"),
        ("format_version", 1, "parts are not of its format version"),
        ("parts", [{"layout": {**SPEC_LAYOUT, "columns": ["loss"]}}], "columns are"),
        ("fingerprint", "xyz", "attribute fingerprint is wrong"),
        ("parts", [{"layout": {"samples": 10**15}}], "attribute parts.0.layout"),
        ("parts", [{"path": "../x"}], "attribute parts.0.path is wrong"),
        ("retired", [""], "attribute retired.0 is wrong"),
        ("retired", ["samples/.."], "attribute retired.0 is wrong"),
        ("deleted", "deleted/../zarr.json", "attribute deleted is wrong"),
        ("identity", {"checkpoints": 1}, "fingerprint is not that of identity"),
        ("fingerprint", "0" * 64, "fingerprint is not that of identity"),
        ("digest", "0" * 64, "digest is not that of the other attributes"),
        ("revision", 7, "digest is not that of the other attributes"),
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
    (store.path / "samples/manifest.parquet").write_bytes(manifest(9).content())
    with pytest.raises(StoreError, match="has changed since the part was created"):
        _ = open_store(store.path).manifest
    part = store.spec.parts[0].model_copy(update={"manifest_sha256": None})  # an older store
    with pytest.raises(StoreError, match="lists 9 samples, the layout says 10"):
        _ = Store(store.objects, store.spec.model_copy(update={"parts": [part]}), b"").manifest


def test_int8_of_very_small_directions() -> None:
    """A subnormal scale has inexact multiples: 166 of them would wrap."""
    tiny = np.float32(1.4e-45)
    given = np.array([[[166 * tiny, -166 * tiny]], [[1.0, -1.0]], [[0.0, 0.0]]], np.float32)
    one = np.ones((3, 1), np.float32)
    stored = Rows(given, one, one, one.astype(np.int32)).stored("int8")
    np.testing.assert_array_equal(stored["direction"][:, 0], [[0, 0], [127, -127], [0, 0]])
    np.testing.assert_allclose(stored["scale"][:, 0], [0, 1 / 127, 0])


def _reads(path: Path) -> list[Callable[[], object]]:
    """Every way to read shard 0 of checkpoint 0, each with its own view of the store."""

    def of(read: Callable[[Store], object]) -> Callable[[], object]:
        return lambda: read(open_store(path))

    return [
        of(lambda one: one.rows(0, 0, 4)),
        of(lambda one: one.take(0, [3, 0, 8])),
        of(lambda one: one.column("norm", 0)),
        of(lambda one: list(one.iter_rows(0))),
        of(lambda one: one.parts[0].read(0, 1, 3)),
    ]


def test_a_seal_is_held_to_what_it_says(store: Store) -> None:
    """An object of another checkpoint is well-formed, and only its seal tells it apart."""
    for name in ("direction/c.0.0.0", "columns/c.0.0.0"):
        one, other = (store.path / f"checkpoints/{number}/{name}" for number in (0, 1))
        kept = one.read_bytes()
        one.write_bytes(other.read_bytes())
        wrong = 0
        for read in _reads(store.path):
            try:
                read()
            except StoreError as error:
                wrong += "not the object that its seal describes" in str(error)
        assert wrong >= 4, name
        one.write_bytes(kept)
    for read in _reads(store.path):
        read()


@pytest.mark.parametrize(
    "change",
    [
        {"objects": {}},
        {"rows": 3},
        {"fingerprint": "0" * 64},
        {"objects": {"direction": {"nbytes": 0, "sha256": "0" * 64}}},
    ],
    ids=["emptied", "rows", "fingerprint", "object"],
)
def test_an_untrue_seal_is_not_believed(store: Store, change: dict[str, Any]) -> None:
    seal = store.path / "seals/0/0.json"
    seal.write_text(json.dumps(json.loads(seal.read_text()) | change))
    for read in _reads(store.path):
        with pytest.raises(StoreError):
            read()


def test_verify_compares_the_checksums_of_a_seal(store: Store) -> None:
    seal = store.path / "seals/0/0.json"
    content = json.loads(seal.read_text())
    sums = content["objects"]["direction"]["crc32c"]
    content["objects"]["direction"]["crc32c"] = ("1" if sums[0] != "1" else "2") + sums[1:]
    seal.write_text(json.dumps(content))
    with pytest.raises(StoreError, match="not the object that its seal describes"):
        open_store(store.path).rows(0)
    found = {(r.checkpoint, r.shard): r.problem for r in verify(open_store(store.path))}
    assert found.pop((0, 0)) == "its seal has other checksums of direction than the object"
    assert set(found.values()) == {None}


def test_a_reader_goes_on_when_a_shard_is_sealed_again(store: Store) -> None:
    reader = open_store(store.path)
    before = reader.rows(0)
    write_shard(store.parts[0], 0, 0, rows(0, seed=9))
    after = reader.rows(0)
    np.testing.assert_array_equal(after.norm[:4], rows(0, seed=9).norm)
    np.testing.assert_array_equal(after.norm[4:], before.norm[4:])
