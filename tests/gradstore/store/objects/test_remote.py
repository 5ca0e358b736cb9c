"""Stores on a real S3 server: all operations of a folder, in a bounded number of requests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.worlds.s3 import Server
from gradstore import delete, drop_checkpoint, merge, open_store, vacuum
from gradstore.collect import ProjectorSpec, append, collect, plan
from gradstore.errors import NotAStoreError, StoreError, UnsealedError
from gradstore.store.objects.location import objects_at
from gradstore.store.verify import verify
from gradstore.store.writer import create, unseal, write_shard
from indexer import ReTrac, build_index, open_index
from query import collect_queries, search
from tests.support.drawn_stores import features
from tests.support.worlds import NAMES, World
from tests.support.written_stores import (
    everything,
    filled,
    grown,
    manifest,
    other_store,
    require_equal,
    rows,
    spec,
)

SMALL: dict[str, Any] = {"projector": ProjectorSpec(proj_dim=64), "shard_samples": 2}


def test_all_changes(bucket: str, tmp_path: Path) -> None:
    def road(place: str) -> dict[str, Any]:
        store = grown(filled(place), ["a", "b", "c"])
        other = other_store(f"{place}-other", ["p", "q"])
        store = vacuum(delete(merge(store, other), ["s4", "b", "q"]))
        assert {report.problem for report in verify(store)} == {None}
        store = vacuum(drop_checkpoint(store, 0))
        return {**everything(store), "ids": list(store.manifest.ids)}

    require_equal(road(f"{bucket}/s.gradstore"), road(str(tmp_path / "s.gradstore")))
    kept = {key for key, _ in objects_at(f"{bucket}/s.gradstore").sizes()}
    assert not any(key.startswith(("checkpoints/0/", "seals/0/", "deleted/")) for key in kept)


def test_the_whole_road(
    bucket: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"{bucket}/train.gradstore"
    plan(world.train, world.checkpoints, url, **SMALL)
    assert list(objects_at(bucket).sizes()) == []  # no objects remain
    four = world.train.only(NAMES[:4])
    store = collect(four, world.checkpoints, url, **SMALL)
    store = append(world.train.only(NAMES[4:]), store)
    local = collect(four, world.checkpoints, tmp_path / "train.gradstore", **SMALL)
    local = append(world.train.only(NAMES[4:]), local)
    require_equal(everything(store), everything(local))
    assert repr(store).startswith(f"Store('{url}'")
    index = build_index(store, "retrac")
    assert index.path == Path("train.retrac.index")
    queries = collect_queries(store, world.queries, f"{bucket}/asked.gradstore")
    found = search(index, queries, k=3)
    expected = search(build_index(local, "retrac", tmp_path / "l"), queries, k=3)
    np.testing.assert_array_equal(found.proponents.samples, expected.proponents.samples)
    with pytest.raises(StoreError, match="is not a local folder"):
        _ = store.path


def test_the_command_line_takes_a_url(bucket: str) -> None:
    url = f"{bucket}/s.gradstore"
    filled(url)
    for command, told in (
        (["verify", url], "every shard is as it was sealed"),
        (["delete", url, "--ids", "s1", "--ids", "s2"], "2 deleted, 8 samples left"),
        (["vacuum", url], "MB freed"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", "from query.cli import main; main()", *command],
            capture_output=True,
            text=True,
            env=dict(os.environ),
            check=False,
        )
        assert told in done.stdout, done.stderr


def test_damage_and_gaps_are_told(bucket: str) -> None:
    store = filled(f"{bucket}/s.gradstore")
    objects = store.objects
    objects.write("checkpoints/0/direction/c.0.0.0", b"short")
    objects.remove("checkpoints/1/columns/c.1.0.0")
    unseal(store.parts[0], 1, 2)
    problems = [str(report) for report in verify(store) if report.problem]
    assert len(problems) == 3
    with pytest.raises(StoreError, match="gradstore verify s3://"):
        store.rows(0, 0, 1)
    with pytest.raises(UnsealedError):
        store.rows(1, 9, 10)
    with pytest.raises(NotAStoreError):
        open_store(f"{bucket}/nothing.gradstore")
    with pytest.raises(StoreError, match="exists and is a store; nothing was changed"):
        create(store.location, spec(), manifest())


def test_a_server_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with pytest.raises(StoreError, match="Check that the disk or network is available"):
        open_store("s3://bucket/s.gradstore")


def test_requests_are_few(bucket: str, s3_server: Server, tmp_path: Path) -> None:
    url = f"{bucket}/s.gradstore"
    made = create(url, spec(), manifest())
    for manifests in (1, 0):  # read once per part, because seals record their samples
        with s3_server.counted() as counts:
            write_shard(made.parts[0], 0, 0, rows(0))
        # Lease, arrays and seal; the old seal and the lease are deleted; the lease is still held
        # before the arrays, before the seal and at the end.
        assert counts == Counter(PUT=4, POST=2, GET=3 + manifests)
    for checkpoint in range(2):
        for shard in range(3):
            write_shard(made.parts[0], checkpoint, shard, rows(shard))
    with s3_server.counted() as counts:
        store = open_store(url)
        _ = store.manifest
    assert counts == Counter(GET=2)
    with s3_server.counted() as counts:
        store.rows(0, 0, 4)
    assert counts == Counter(HEAD=1, GET=3)  # the seal once, and the arrays
    with s3_server.counted() as counts:
        store.take(0, [9, 1, 3, 5, 5])
    assert counts == Counter(LIST=1, GET=8)  # per shard, for any number of rows; two new seals
    with s3_server.counted() as counts:
        store.column("norm", 1)
    assert counts == Counter(LIST=1, GET=6)
    with s3_server.counted() as counts:
        store.column("norm", 1, np.array([5, 6]))
    assert counts == Counter(HEAD=1, GET=1)  # for one shard, requests the seal itself
    index = build_index(store, "retrac", tmp_path / "index")
    asked = features(store, ReTrac(), 0, 1)
    opened = open_index(tmp_path / "index", store, "retrac")
    for one, weighed in ((index, 0), (opened, 2), (opened, 0)):
        with s3_server.counted() as counts:
            one.search(asked, 3)
        # Checks that the index is current, and reads the directions of its candidates, here the
        # whole store, from all shards at once; the first query also reads the weights of all rows,
        # unless the build has read them.
        directions, columns = Counter(LIST=2, GET=2 * 3), Counter(LIST=weighed, GET=weighed * 3)
        assert counts == Counter(GET=1) + directions + columns
    with s3_server.counted() as counts:
        store.is_current()
    assert counts == Counter(GET=1)
    with s3_server.counted() as counts:
        delete(store, ["s1"])
    assert counts.total() <= 12  # with the records of two commits, and what is around them
