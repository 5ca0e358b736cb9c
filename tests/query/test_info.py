"""Summaries of a store."""

from __future__ import annotations

import json
from pathlib import Path

from gradstore import delete, drop_checkpoint, open_store, vacuum
from gradstore.store.format.root import root_object
from gradstore.store.writer import unseal
from query import examine
from query.info import describe
from tests.support.written_stores import filled, grown

MADE_BY = {
    "versions": {"gradstore": "0.1.0", "torch": "2.13.0"},
    "device": "cpu",
    "engine": "streaming",
    "config": {"dataset": "digits", "device": None},
}


def test_each_checkpoint_and_part(tmp_path: Path) -> None:
    store = delete(grown(filled(tmp_path / "s.gradstore"), ["a", "b", "c"]), ["s1", "a"])
    unseal(store.parts[0], 1, 2)
    found = examine(store)
    assert json.loads(json.dumps(found)) == found
    first, second = found["checkpoints"]
    # Three shards of ten samples, two of three.
    assert (first["sealed"], first["missing"], first["deleted"]) == (5, 0, 2)
    assert (second["sealed"], second["missing"], second["deleted"]) == (4, 1, 2)
    files = [file for file in store.path.rglob("*") if file.is_file()]
    assert found["nbytes"] == sum(file.stat().st_size for file in files)
    for one in found["checkpoints"]:
        own = [
            file
            for file in files
            if {("checkpoints", str(one["number"])), ("seals", str(one["number"]))}
            & set(zip(file.parts, file.parts[1:], strict=False))
        ]
        assert one["nbytes"] == sum(file.stat().st_size for file in own) > 0
    assert [(one["samples"], one["deleted"]) for one in found["parts"]] == [(10, 1), (3, 1)]
    told = describe(store.location)
    assert "0  eta 0.5  shards 5/5 sealed, 0 missing; 2 samples deleted;" in told
    assert "1  eta 1  shards 4/5 sealed, 1 missing; 2 samples deleted;" in told
    assert found["fingerprint"] in told


def test_what_vacuum_would_free_of_a_dropped_checkpoint(tmp_path: Path) -> None:
    store = filled(tmp_path / "s.gradstore")
    assert examine(store)["retired_nbytes"] == 0
    assert "no longer part of the store" not in describe(store.location)
    of_first = examine(store)["checkpoints"][0]["nbytes"]
    dropped = drop_checkpoint(store, 0)
    assert examine(dropped)["retired_nbytes"] == of_first
    assert f"gradstore vacuum {store.location}" in describe(store.location)
    before = dropped.nbytes
    after = vacuum(dropped)
    records = sum(size for _, size in after.objects.sizes("commits"))
    assert before - (after.nbytes - records) >= of_first
    assert examine(open_store(store.path))["retired_nbytes"] == 0


def test_what_made_it(tmp_path: Path) -> None:
    store = filled(tmp_path / "s.gradstore")
    part = store.spec.parts[0].model_copy(update={"made_by": MADE_BY})
    spec = store.spec.model_copy(update={"parts": [part]})
    (store.path / "zarr.json").write_bytes(root_object(spec))
    assert examine(open_store(store.path))["parts"][0]["made_by"] == MADE_BY
    told = describe(store.location)
    assert (
        "made by gradstore 0.1.0, torch 2.13.0, device cpu, engine streaming, dataset digits"
    ) in told


def test_a_store_s_texts_do_nothing_to_a_terminal(tmp_path: Path) -> None:
    store = filled(tmp_path / "s.gradstore")
    hostile = [one.model_copy(update={"path": "\x1b[2J\nx"}) for one in store.spec.checkpoints]
    spec = store.spec.model_copy(update={"checkpoints": hostile})
    (store.path / "zarr.json").write_bytes(root_object(spec))
    told = describe(store.location)
    assert "\x1b" not in told
    assert "\\x1b[2J\\nx" in told
