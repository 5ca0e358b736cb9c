"""A recorded name is followed only if the user gave it, or it lies beside the store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gradstore import open_store
from gradstore.collect import named
from gradstore.collect.named import follow, may_follow
from gradstore.collect.provenance import follow_recorded, recorded_dataset, recorded_folders
from gradstore.errors import UnknownNameError
from tests.support.drawn_stores import random_store
from tests.support.written_stores import edit_root


@pytest.fixture(autouse=True)
def _own_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(named, "_HERE", set())


def test_what_lies_beside_the_store(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "images").mkdir(parents=True)
    (tmp_path / "private").mkdir()
    (run / "link").symlink_to(tmp_path / "private")
    store = str(run / "train.gradstore")
    assert may_follow(str(run / "images"), store)
    assert may_follow("digits", store)
    for name in (tmp_path / "private", run / "link", run / ".." / "private", tmp_path, "/", ""):
        assert not may_follow(str(name), store)
    for name in (
        "images/\ud800",
        "images/\0",
        "hf://someone/something",
        "s3://bucket/x",
        r"\\server\share",
    ):
        assert not may_follow(name, store)
    assert not may_follow(str(run / "images"), "s3://bucket/train.gradstore")


def test_a_store_in_the_home_folder_leads_to_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "home/letters").mkdir(parents=True)
    for store in (tmp_path / "home/s.gradstore", tmp_path / "s.gradstore"):
        assert not may_follow(str(tmp_path / "home/letters"), str(store))
    assert may_follow(str(tmp_path / "home/run/x"), str(tmp_path / "home/run/s.gradstore"))


def test_other_names_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def looked(name: object) -> str:
        raise AssertionError(name)

    monkeypatch.setattr(named, "_real", looked)
    for name in (tmp_path / "run/../private", "/net/host/share", r"\\server\share", "//server/x"):
        assert not may_follow(str(name), str(tmp_path / "run/s.gradstore"))


def test_what_the_user_gave_is_followed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    follow(["images", "hf://a/b", "new\nline"])
    follow(["images"])
    text = (tmp_path / "state/gradstore/named").read_text()
    assert len(text.splitlines()) == 3
    ask = "from gradstore.collect.named import may_follow as m\nimport sys\nprint(m(*sys.argv[1:]))"
    for name, known in ((tmp_path / "images", True), ("hf://a/b", True), ("hf://a/c", False)):
        told = subprocess.run(
            [sys.executable, "-c", ask, str(name), "s3://b/s.gradstore"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert told.stdout.strip() == str(known)


def test_a_list_that_cannot_be_written_or_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    follow(["hf://a/b"])
    assert may_follow("hf://a/b", "s")
    file = tmp_path / "state/gradstore/named"
    file.parent.mkdir(parents=True)
    file.write_bytes(b'"hf://a/c"\n\xff\n[[[\n"hf://a/d"')
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert may_follow("hf://a/c", "s")
    assert may_follow("hf://a/d", "s")


def test_a_strangers_store_leads_nowhere_until_the_user_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "got" / "s.gradstore"
    folder.parent.mkdir()
    random_store(folder)

    def change(root: dict[str, list[dict[str, object]]]) -> None:
        root["parts"][0]["made_by"] = {"config": {"dataset": "hf://someone/beacon"}}
        for one in root["checkpoints"]:
            one["path"] = str(tmp_path / "private")

    edit_root(folder, change)
    store = open_store(folder)
    with pytest.raises(UnknownNameError, match="private.*--follow-recorded"):
        recorded_folders(store)
    with pytest.raises(UnknownNameError, match="hf://someone/beacon"):
        recorded_dataset(store, store.spec.parts[0])
    follow_recorded(store)
    assert recorded_folders(store) == [str(tmp_path / "private")] * store.checkpoints
    found = recorded_dataset(store, store.spec.parts[0])
    assert found.dataset == "hf://someone/beacon"
