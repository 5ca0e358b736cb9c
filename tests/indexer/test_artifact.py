"""An artifact is replaced as a whole, wherever a process dies."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradstore.errors import SearchIndexError
from indexer import build_index, index_path, open_index
from indexer.artifact import exchanged, stands
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
