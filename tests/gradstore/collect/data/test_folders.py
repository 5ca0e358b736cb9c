"""Folders as people have them: hidden files, links, names in two Unicode forms."""

from __future__ import annotations

import json
import logging
import unicodedata
from pathlib import Path

import pytest

import gradstore as gs
from gradstore.errors import DatasetError
from tests.support.commands import Run
from tests.support.pictures import GREY, file_of, folder_of
from tests.support.worlds import World, images, save_checkpoint

PAPER = ["--metric", "none", "--projector", "sjlt", "--proj-dim", 16]
PLANNED = [*PAPER, "--timesteps", 2]
SEEN = ["cat/a.png", "cat/b.jpg", "dog/c.png"]


def test_what_programs_hide_is_no_sample(
    run: Run, tmp_path: Path, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    content = file_of(GREY)
    hidden = [
        "cat/.ipynb_checkpoints/a-checkpoint.png",
        ".thumbnails/a.png",
        "__MACOSX/cat/a.png",
        "__MACOSX/cat/._a.png",
        "cat/._a.png",
        "dog/@eaDir/c.png",
        ".hidden/metadata.jsonl",
    ]
    folder = folder_of(tmp_path / "a", dict.fromkeys([*SEEN, *hidden], content))
    with caplog.at_level(logging.INFO, "gradstore"):
        run("collect", "--dataset", folder, "--checkpoints", world.checkpoints[0],
            "--store", tmp_path / "a.gradstore", *PLANNED)  # fmt: skip
    assert any("6 hidden" in one.message for one in caplog.records)
    manifest = gs.open_store(tmp_path / "a.gradstore").manifest
    assert manifest.ids == SEEN
    assert manifest.metadata["label"] == ["cat", "cat", "dog"]
    # The dataset itself may lie in a hidden folder.
    assert gs.Samples(folder / ".thumbnails").ids == ["a.png"]


def test_linked_folders_are_followed_and_circles_are_not(
    run: Run, tmp_path: Path, world: World
) -> None:
    """On every version of Python; a class may be a link."""
    elsewhere = folder_of(tmp_path / "elsewhere", {"c.png": file_of(GREY), "sub/d.png": b""})
    (elsewhere / "sub" / "d.png").write_bytes(file_of(GREY))
    folder = folder_of(tmp_path / "a", {"cat/a.png": file_of(GREY)})
    (folder / "dog").symlink_to(elsewhere)
    (folder / "cat" / "up").symlink_to(folder)
    (elsewhere / "sub" / "back").symlink_to(folder)
    (folder / "cat" / "z.png").symlink_to(elsewhere / "c.png")
    run("collect", "--dataset", folder, "--checkpoints", world.checkpoints[0],
        "--store", tmp_path / "a.gradstore", *PLANNED)  # fmt: skip
    manifest = gs.open_store(tmp_path / "a.gradstore").manifest
    assert manifest.ids == ["cat/a.png", "cat/z.png", "dog/c.png", "dog/sub/d.png"]
    assert manifest.metadata["label"] == ["cat", "cat", "dog", "sub"]


COMPOSED, APART = (unicodedata.normalize(form, "caf\u00e9.png") for form in ("NFC", "NFD"))


def test_ids_are_compared_in_one_unicode_form(run: Run, tmp_path: Path, world: World) -> None:
    """A folder copied between macOS and Linux is the same dataset; what users type finds it."""
    mac, linux = (
        folder_of(tmp_path / name, {given: file_of(GREY), "b.png": file_of(images(2)[1])})
        for name, given in (("mac", APART), ("linux", COMPOSED))
    )
    # The training run saw the one form, the store is of the other.
    trained = save_checkpoint(tmp_path / "run" / "epoch-01", ids=[COMPOSED, "b.png"])
    base = ["--checkpoints", trained, "--store", tmp_path / "a.gradstore", "--events", "replayed"]
    run("collect", "--dataset", mac, *base, *PAPER)
    run("collect", "--dataset", linux, *base, *PAPER)
    store = gs.open_store(tmp_path / "a.gradstore")
    assert store.manifest.ids == ["b.png", COMPOSED]
    (mac / "metadata.jsonl").write_text(json.dumps({"file_name": COMPOSED, "text": "a cup"}))
    assert gs.Samples(mac)[1].caption == "a cup"
    keep = gs.matching_samples(store, ids=[APART])
    assert keep is not None
    assert keep.tolist() == [1]
    assert gs.Samples(linux).only([APART]).ids == [COMPOSED]
    run("query", "--store", tmp_path / "a.gradstore", "--dataset", linux, "--ids", APART, "--k", 1,
        "--timesteps", 2, "--draws", 1, "--out", tmp_path / "answers")  # fmt: skip
    run("delete", tmp_path / "a.gradstore", "--ids", APART)
    assert gs.open_store(tmp_path / "a.gradstore").manifest.ids == ["b.png"]


def test_ids_that_differ_by_their_form_alone_are_refused(
    run: Run, tmp_path: Path, world: World
) -> None:
    folder = folder_of(tmp_path / "a", {COMPOSED: file_of(GREY), APART: file_of(GREY)})
    told = run("collect", "--dataset", folder, "--checkpoints", world.checkpoints[0],
               "--store", tmp_path / "a.gradstore", *PLANNED, status=1)  # fmt: skip
    assert "U+00E9" in told
    assert "U+0301" in told
    with pytest.raises(DatasetError):
        gs.Samples([GREY, GREY], ids=[COMPOSED, APART])
