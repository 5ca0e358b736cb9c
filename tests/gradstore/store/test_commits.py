"""A root object that was edited or replaced is found, and verify names the commit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gradstore import delete, drop_checkpoint, open_store, vacuum
from gradstore.errors import StoreError
from gradstore.store.objects.local import LocalObjects
from gradstore.store.reader import Store
from gradstore.store.verify import verify
from tests.support.written_stores import edit_root, filled, grown


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of two parts, with a deleted sample."""
    return delete(grown(filled(tmp_path / "s.gradstore"), ["a", "b"]), ["s3"])


def problems(store: Store) -> set[str | None]:
    return {report.problem for report in verify(open_store(store.path))}


def test_commits_are_recorded_and_name_no_samples(store: Store) -> None:
    assert problems(store) == {None}
    files = sorted((store.path / "commits").iterdir())
    assert [json.loads(file.read_text())["change"] for file in files] == [
        "create",
        "append",
        "delete",
    ]
    assert not any("s3" in file.read_text() for file in files)
    vacuum(store)
    assert problems(store) == {None}


def raised_eta(root: Any) -> None:
    root["checkpoints"][0]["eta"] = 5.5


def undeleted(root: Any) -> None:
    root["deleted"] = None


def without_part(root: Any) -> None:
    root["parts"].pop(0)
    root["deleted"] = None


def other_order(root: Any) -> None:
    root["parts"].reverse()


EDITS: dict[Any, str] = {
    raised_eta: "checkpoints or their weights",
    undeleted: "deleted samples",
    without_part: "parts of samples",
    other_order: "parts of samples",
}


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edited_root_is_refused_or_found(store: Store, edit: Any) -> None:
    file = store.path / "zarr.json"
    before = file.read_text()
    document = json.loads(before)
    edit(document["attributes"]["gradstore"])
    file.write_text(json.dumps(document))
    with pytest.raises(StoreError, match="changed by hand"):
        open_store(store.path)
    file.write_text(before)
    edit_root(store.path, edit, recorded=False)  # with a digest that is right again
    with pytest.raises(StoreError, match=f"after commit 2 .delete.: .*{EDITS[edit]}"):
        problems(store)
    with pytest.raises(StoreError, match="after commit 2 .delete."):
        delete(open_store(store.path), ["b"])


def test_a_root_of_a_commit_that_never_was_is_found(store: Store) -> None:
    """Its digest is right, and no record contradicts it, for there is none of its revision."""
    first = json.loads((store.path / "commits/0.json").read_text())["digest"]
    root = (store.path / "zarr.json").read_text()
    for revision in (3, 4, 10**6):
        for previous in (None, first, store.spec.previous):

            def forge(
                state: Any, revision: int = revision, previous: str | None = previous
            ) -> None:
                state |= {"deleted": None, "revision": revision, "previous": previous}

            (store.path / "zarr.json").write_text(root)
            edit_root(store.path, forge, recorded=False)
            with pytest.raises(StoreError, match="changed by hand"):
                problems(store)
            with pytest.raises(StoreError, match="changed by hand"):
                delete(open_store(store.path), ["b"])
            assert len(list((store.path / "commits").iterdir())) == 3


def test_an_older_root_that_comes_back_is_found(store: Store) -> None:
    older = (store.path / "zarr.json").read_bytes()
    delete(store, ["s4"])
    (store.path / "zarr.json").write_bytes(older)
    with pytest.raises(StoreError, match="commit 3 .delete. followed it and was undone"):
        problems(store)
    for change in (vacuum, lambda one: grown(one, ["c"]), lambda one: drop_checkpoint(one, 0)):
        with pytest.raises(StoreError, match="was undone"):
            change(open_store(store.path))
    assert (store.path / "zarr.json").read_bytes() == older
    (store.path / "commits/3.json").unlink()  # as the error says
    assert problems(store) == {None}


def test_records_must_follow_from_each_other(store: Store) -> None:
    file = store.path / "commits/1.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "digest": "0" * 64}))
    with pytest.raises(StoreError, match="is not that of the commit that the next one followed"):
        problems(store)
    file.write_text("{")
    with pytest.raises(StoreError, match="is damaged"):
        problems(store)
    file.unlink()  # as the errors say
    assert problems(store) == {None}
    last = store.path / "commits/2.json"
    kept = last.read_text()
    last.write_text("{")
    delete(store, ["s4"])  # writes it again
    assert last.read_text() == kept
    assert problems(store) == {None}


def test_a_record_that_a_killed_process_left_out_is_written_later(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LocalObjects.write

    def write(self: LocalObjects, key: str, content: bytes | bytearray) -> None:
        if key == "commits/3.json":
            raise KeyboardInterrupt
        real(self, key, content)

    with monkeypatch.context() as patch:
        patch.setattr(LocalObjects, "write", write)
        with pytest.raises(KeyboardInterrupt):
            delete(store, ["s4"])
    assert problems(store) == {None}
    delete(open_store(store.path), ["s5"])
    assert (store.path / "commits/3.json").exists()
    assert problems(store) == {None}
