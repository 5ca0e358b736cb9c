"""An artifact is replaced as a whole, wherever a process dies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gradstore.errors import SearchIndexError
from indexer import build_index, index_path, open_index
from indexer.artifact import exchanged, leftovers, stands
from query.engines import engine_of
from tests.support.drawn_stores import random_store


def parts(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def replace(path: Path, text: str) -> None:
    with exchanged("index", path) as building:
        (building / "one").write_text(text)


def test_a_replacement_that_was_cut_off_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a [1].index"
    replace(path, "earlier")
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if target == path and ".building-" in self.name:
            raise KeyboardInterrupt  # stopped between its two renames
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            replace(path, "later")
    assert (path / "one").read_text() == "earlier"
    assert parts(tmp_path) == [path.name]
    path.rename(tmp_path / f".{path.name}.old-0")  # killed, so that nothing was put back
    assert stands(path)
    assert (path / "one").read_text() == "earlier"
    replace(path, "later")
    assert (path / "one").read_text() == "later"
    assert not [name for name in parts(tmp_path) if ".old-" in name]


def test_a_reader_may_put_the_earlier_one_back_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.index"
    replace(path, "earlier")
    real, first = Path.rename, iter([True])

    def rename(self: Path, target: Path) -> Path:
        if target == path and ".building-" in self.name and next(first, False):
            assert stands(path)
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    replace(path, "later")
    assert (path / "one").read_text() == "later"
    assert parts(tmp_path) == ["a.index"]


def test_a_reader_that_looks_only_amid_replacements_finds_the_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.index"
    replace(path, "earlier")
    real, unlucky = Path.exists, iter([True] * 3)

    def exists(self: Path) -> bool:
        if self != path or not next(unlucky, False):
            return real(self)
        away = self.rename(tmp_path / ".a.index.old-0")  # another process replaces it just now,
        found = real(self)
        away.rename(self)  # and is done before the folder is listed
        return found

    monkeypatch.setattr(Path, "exists", exists)
    assert stands(path)


def test_processes_that_replace_one_artifact_at_once_leave_no_moment_without(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.index"
    replace(path, "first")
    script = f"""
import sys
from pathlib import Path
from indexer.artifact import exchanged
for number in range(150):
    with exchanged("index", Path({str(path)!r})) as building:
        for name in ("one", "two"):
            (building / name).write_text(sys.argv[1] + str(number))
"""
    writers = [subprocess.Popen([sys.executable, "-c", script, name]) for name in "abc"]
    try:
        while any(writer.poll() is None for writer in writers):
            assert stands(path)
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert (path / "one").read_text() == (path / "two").read_text()
    assert parts(tmp_path) == ["a.index"]


def test_a_query_finds_the_index_again(tmp_path: Path) -> None:
    store = random_store(tmp_path / "t.gradstore")
    build_index(store, "retrac")
    path = index_path(store, "retrac")
    path.rename(path.with_name(f".{path.name}.old-0"))
    assert type(engine_of(store, "retrac")).__name__ == "SearchIndex"
    assert open_index(path, store, "retrac").spec.count == store.samples
    assert not stands(tmp_path / "other")
    with pytest.raises(SearchIndexError, match="there is no index"):
        open_index(tmp_path / "other", store, "retrac")


def test_what_a_killed_build_left_is_found_and_what_runs_is_not(tmp_path: Path) -> None:
    store = random_store(tmp_path / "t.gradstore")
    random_store(tmp_path / "t.v2.gradstore")
    script = f"""
import sys, time
from pathlib import Path
from indexer.artifact import exchanged
with exchanged("index", Path({str(tmp_path)!r}) / "t.retrac.index") as building:
    (building / "vectors").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            assert leftovers(store) == []
        finally:
            process.kill()
            process.wait()
    (left,) = leftovers(store)
    assert (left / "vectors").read_text() == "half"
    foreign = [".t.notes.building-0", ".t.v2.gradstore.building-0", ".tt.retrac.index.building-0"]
    for name in (*foreign, ".t.gradstore.building-0", ".t.trak.kernel.building-0"):
        (tmp_path / name).mkdir()
    (tmp_path / ".t.link.index.building-0").symlink_to(tmp_path)
    assert {one.name for one in leftovers(store)} == {
        left.name, ".t.gradstore.building-0", ".t.trak.kernel.building-0"
    }  # fmt: skip


def test_an_earlier_artifact_is_no_leftover_if_it_is_the_only_one(tmp_path: Path) -> None:
    store = random_store(tmp_path / "t.gradstore")
    replace(tmp_path / "t.retrac.index", "earlier")
    (tmp_path / "t.retrac.index").rename(tmp_path / ".t.retrac.index.old-0")
    assert leftovers(store) == []
    assert (tmp_path / "t.retrac.index/one").read_text() == "earlier"
    (tmp_path / ".t.retrac.index.old-1").mkdir()
    assert [one.name for one in leftovers(store)] == [".t.retrac.index.old-1"]
