"""Under a URL, a shard has one writer at a time, wherever another one stands still or dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from gradstore import open_store, vacuum
from gradstore.store import leases, writer
from gradstore.store.changes.vacuum import left_inside
from gradstore.store.objects.location import objects_at
from gradstore.store.reader import Store
from gradstore.store.verify import check
from gradstore.store.writer import create, write_shard
from tests.support.written_stores import filled, manifest, rows, spec

if TYPE_CHECKING:
    from gradstore.store.objects.protocol import Objects

WRITER = """
import os, signal, sys
from gradstore.store import leases, writer
from gradstore.store.opening import open_store
from tests.support.written_stores import rows

url, step, seed = sys.argv[1:]
leases.PATIENCE_SECONDS = 0.5

def reached(now):
    if now == step:
        writer.reached = lambda _: None
        os.kill(os.getpid(), signal.SIGSTOP)

writer.reached = reached
writer.write_shard(open_store(url).parts[0], 0, 0, rows(0, int(seed)))
"""


@contextmanager
def stopped_at(step: str, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes a shard and stands still at a step; it goes on at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, url, step, "1"], cwd=Path(__file__).parents[3]
    )
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        yield process
    finally:
        process.kill()
        process.wait()


def seed_of(store: Store) -> int | None:
    found = store.rows(0, 0, 4).direction
    same = [seed for seed in (1, 2) if np.array_equal(found, rows(0, seed).direction)]
    return same[0] if same else None


def left(url: str) -> list[str]:
    return [key for key, _ in objects_at(url).sizes() if key.endswith(".lease")]


@pytest.mark.parametrize("step", writer.STEPS)
def test_a_writer_that_stood_still_spoils_nothing(
    step: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "PATIENCE_SECONDS", 0.5)
    url = f"{bucket}/s.gradstore"
    part = create(url, spec(), manifest()).parts[0]
    with stopped_at(step, url) as process:
        write_shard(part, 0, 0, rows(0, 2))
        assert check(part, 0, 0) is None
        sealed_before = step in {"sealed", "seal flushed"}
        assert seed_of(open_store(url)) == (1 if sealed_before else 2)
        os.kill(process.pid, signal.SIGCONT)
        assert process.wait(60) == 0
    assert check(part, 0, 0) is None
    assert seed_of(open_store(url)) in {1, 2}
    assert left(url) == []


def test_a_shard_that_another_process_writes_is_waited_for(bucket: str) -> None:
    url = f"{bucket}/s.gradstore"
    part = create(url, spec(), manifest()).parts[0]
    with stopped_at("written", url) as process:
        other = subprocess.Popen(
            [sys.executable, "-c", WRITER.replace("0.5", "60"), url, "never", "2"],
            cwd=Path(__file__).parents[3],
        )
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(3)
        os.kill(process.pid, signal.SIGCONT)
        assert other.wait(60) == process.wait(60) == 0
    assert check(part, 0, 0) is None
    assert seed_of(open_store(url)) == 1
    assert left(url) == []


def test_the_lease_of_a_dead_writer_is_found_and_removed(bucket: str) -> None:
    url = f"{bucket}/s.gradstore"
    store = filled(url)
    key = store.parts[0].lease_key(0, 1)
    store.objects.add(key, b"dead")
    assert left_inside(store) == [key]
    assert store.parts[0].sealed(0) == {0, 1, 2}
    assert left(vacuum(store).location) == []


def test_a_lease_that_changes_its_holder_is_respected_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "PATIENCE_SECONDS", 1.0)
    objects = filled(tmp_path / "s.gradstore").objects
    objects.add("one.lease", b"0")

    def change_hands() -> None:
        for number in range(1, 6):
            sleep(0.4)
            objects.write("one.lease", b"%d" % number)

    changing = Thread(target=change_hands)
    changing.start()
    lease = leases.Lease(objects, "one.lease")
    lease.acquire()
    assert lease.waited
    assert not changing.is_alive()  # only the last one was taken for dead
    changing.join()
    lease.require()


class Overtaken:
    """Objects of a process that finds a lease expired, and is overtaken before it takes it."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._first: float | None = None
        self.taken = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objects, name)

    def read(self, key: str, most: int) -> bytes:
        found = self._objects.read(key, most)
        self._first = self._first or monotonic()
        if not self.taken and monotonic() - self._first >= leases.PATIENCE_SECONDS:
            self._objects.write(key, b"faster")
            self.taken = monotonic()
        return found


def test_only_one_takes_an_expired_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "PATIENCE_SECONDS", 0.5)
    objects = filled(tmp_path / "s.gradstore").objects
    objects.add("one.lease", b"dead")
    overtaken = Overtaken(objects)
    leases.Lease(cast("Objects", overtaken), "one.lease").acquire()
    assert overtaken.taken
    assert monotonic() - overtaken.taken >= leases.PATIENCE_SECONDS  # the faster one was respected


def test_a_lease_that_was_taken_over_is_lost(tmp_path: Path) -> None:
    objects = filled(tmp_path / "s.gradstore").objects
    lease = leases.Lease(objects, "one.lease")
    lease.acquire()
    assert not lease.waited
    objects.write("one.lease", b"another")
    with pytest.raises(leases.LostError):
        lease.require()
    with pytest.raises(leases.LostError):
        lease.release()
    assert objects.read("one.lease") == b"another"
    objects.remove("one.lease")
    with pytest.raises(leases.LostError):
        lease.require()
