from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from threading import Timer
from time import monotonic, sleep

import pytest

from gradstore import delete
from gradstore.errors import StoreError
from gradstore.store import locks
from gradstore.store.locks import discard, is_held, is_lock, locked, name_of
from gradstore.store.objects.local import LocalObjects
from gradstore.store.objects.protocol import ChangedError
from tests.support.waiting import wait_for
from tests.support.written_stores import filled


def _hold(file: Path, mark: Path, seconds: float = 600) -> None:
    with locked(file, wait=False) as mine:
        assert mine
        mark.touch()
        sleep(seconds)


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    file, mark = tmp_path / "folder" / "lock", tmp_path / "mark"
    victim = multiprocessing.get_context("spawn").Process(target=_hold, args=(file, mark))
    victim.start()
    until = monotonic() + 60
    while not mark.exists():
        assert monotonic() < until
        sleep(0.05)
    with locked(file, wait=False) as mine:
        assert not mine
    victim.kill()
    victim.join(60)
    with locked(file, wait=True) as mine:
        assert mine
        discard(file)
    assert list(file.parent.iterdir()) == []


def test_a_lock_that_a_stopped_process_holds_is_waited_for_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "_TOLD_SECONDS", 0.2)
    file, mark = tmp_path / "lock", tmp_path / "mark"
    holder = multiprocessing.get_context("spawn").Process(target=_hold, args=(file, mark, 2.0))
    holder.start()
    wait_for(mark, holder)
    assert is_held(file)
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGSTOP)
    Timer(1.0, os.kill, (holder.pid, signal.SIGCONT)).start()
    with locked(file, wait=True) as mine:
        assert mine
    assert f"another process holds {file}" in caplog.text
    holder.join(60)
    assert not is_held(file)


def test_a_lock_is_no_part_of_a_store(tmp_path: Path) -> None:
    store = filled(tmp_path / "s.gradstore")
    objects = store.objects
    before = dict(objects.sizes())
    lock = store.path / name_of("zarr.json")
    assert is_lock(lock.name)
    with pytest.raises(ChangedError):
        objects.replace("zarr.json", b"mine", seen=b"another")
    lock.touch()  # like a killed process
    assert dict(objects.sizes()) == before
    assert objects.names("") == {"zarr.json"}
    delete(store, ["s1"])
    assert not lock.exists()


def test_no_folder_is_made_where_a_store_is_gone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LocalObjects(tmp_path / "gone").replace("zarr.json", b"1", seen=b"0")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_locked_is_told(tmp_path: Path) -> None:
    store = filled(tmp_path / "s.gradstore")
    (store.path / name_of("zarr.json")).mkdir()
    with pytest.raises(StoreError, match="cannot be changed: .*get write permission"):
        delete(store, ["s1"])
    assert store.is_current()
