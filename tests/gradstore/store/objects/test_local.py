"""Requirements for every location of a store: a folder or a real S3 server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gradstore.errors import StoreError
from gradstore.store.objects.local import LocalObjects
from gradstore.store.objects.location import objects_at
from gradstore.store.objects.protocol import ChangedError, Objects, TooLargeError
from gradstore.store.objects.remote import RemoteObjects


@pytest.fixture
def objects(place: Objects) -> Objects:
    """The location of a new store."""
    place.create("", {"zarr.json": b"root"})
    return place


@pytest.fixture(params=["folder", "s3", "file://"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    places = {
        "folder": tmp_path / "o",
        "s3": request.getfixturevalue("bucket"),
        "file://": f"file://{tmp_path}/o",
    }
    found = objects_at(places[request.param])
    assert isinstance(found, RemoteObjects if request.param == "s3" else LocalObjects)
    assert found.remote == (request.param == "s3")
    return found


def test_what_is_written_is_read(objects: Objects) -> None:
    objects.write("a/b", b"0123456789")
    objects.flush(["a/b"])
    assert objects.read("a/b") == b"0123456789"
    assert bytes(objects.read_ranges("a/b", [(1, 2), (7, 3), (0, 1)])) == b"127890"
    objects.write("a/b", bytearray(b"new"))
    assert objects.read("a/b") == b"new"
    with pytest.raises(OSError, match="bytes|ends early"):
        objects.read_ranges("a/b", [(0, 1), (2, 2)])


def test_what_is_not_there(objects: Objects) -> None:
    objects.write("x", b"")
    with pytest.raises(FileNotFoundError):
        objects.read("y")
    with pytest.raises(FileNotFoundError):
        objects.read_ranges("y", [(0, 1)])
    assert objects.names("none") == set()
    objects.remove("y")
    objects.remove_all("none")
    assert objects.read("x") == b""


def test_a_larger_object_is_not_read(objects: Objects) -> None:
    objects.write("a/b", b"12345")
    assert objects.read("a/b", 5) == b"12345"
    with pytest.raises(TooLargeError, match="it has 5 bytes"):
        objects.read("a/b", 4)


def test_names_sizes_and_removal(objects: Objects) -> None:
    for key in ("seals/0/1.json", "seals/0/2.json", "seals/0/deep/3", "seals/01/4", "z"):
        objects.write(key, key.encode())
    assert objects.names("seals/0") == {"1.json", "2.json"}
    assert dict(objects.sizes("seals/0")) == {
        "seals/0/1.json": 14, "seals/0/2.json": 14, "seals/0/deep/3": 14,
    }  # fmt: skip
    objects.remove("seals/0/1.json")
    objects.remove_all("seals/0")
    assert {key for key, _ in objects.sizes()} == {"seals/01/4", "z", "zarr.json"}
    objects.remove_all("")
    assert list(objects.sizes()) == []


def test_several_are_created_once(place: Objects) -> None:
    objects = place
    contents = {"zarr.json": b"root", "a/b": b"1"}
    objects.create("", contents)
    with pytest.raises(FileExistsError):
        objects.create("", {"zarr.json": b"other", "a/b": b"2"})
    assert objects.read("a/b") == b"1"
    objects.create("parts/p", contents)
    assert {key for key, _ in objects.sizes()} == {
        "zarr.json", "a/b", "parts/p/zarr.json", "parts/p/a/b",
    }  # fmt: skip


def test_what_exists_is_not_added(objects: Objects) -> None:
    objects.add("a/b", b"1")
    with pytest.raises(FileExistsError):
        objects.add("a/b", b"2")
    assert objects.read("a/b") == b"1"
    assert {key for key, _ in objects.sizes()} == {"a/b", "zarr.json"}


def test_two_who_create_do_not_mix(bucket: str) -> None:
    """One has written all but the last object when the other starts."""
    first, second = objects_at(bucket), objects_at(bucket)
    first.write("samples/manifest.parquet", b"first")
    with pytest.raises(OSError, match="already exists with other content"):
        second.create("", {"samples/manifest.parquet": b"second", "zarr.json": b"2"})
    assert first.read("samples/manifest.parquet") == b"first"
    first.create("", {"samples/manifest.parquet": b"first", "zarr.json": b"1"})
    assert second.read("zarr.json") == b"1"


def test_a_lost_reply_is_no_failure(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server wrote the object; the client got no reply and retried."""
    mine = objects_at(bucket)
    assert isinstance(mine, RemoteObjects)
    mine.write("zarr.json", b"1")
    real = mine._obstore

    class Twice:
        """obstore with a server whose first reply is lost."""

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def put(self, *given: Any, **options: Any) -> Any:
            real.put(*given, **options)
            return real.put(*given, **options)

    monkeypatch.setattr(mine, "_obstore", Twice())
    mine.replace("zarr.json", b"2", seen=b"1")
    assert mine.read("zarr.json") == b"2"


def test_what_vanishes_while_it_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(b"12")
    real = os.walk

    def walk(top: Any) -> Any:
        for folder, folders, files in real(top):
            (tmp_path / "a").unlink(missing_ok=True)
            yield folder, folders, files

    monkeypatch.setattr(os, "walk", walk)
    assert dict(objects_at(tmp_path).sizes()) == {"b": 2}


def test_only_what_was_seen_is_replaced(objects: Objects) -> None:
    objects.replace("zarr.json", b"1", seen=b"root")
    objects.replace("zarr.json", b"2", seen=b"1")
    with pytest.raises(ChangedError, match=r"zarr\.json was changed by another process"):
        objects.replace("zarr.json", b"3", seen=b"1")
    assert objects.read("zarr.json") == b"2"


def test_a_race_to_replace_has_one_winner(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another client writes between reading and writing, and the server refuses."""
    mine, other = objects_at(bucket), objects_at(bucket)
    assert isinstance(mine, RemoteObjects)
    mine.write("zarr.json", b"1")
    real = mine._obstore

    class Slow:
        """obstore, slower than another client."""

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def put(self, *given: Any, **options: Any) -> Any:
            other.write("zarr.json", b"theirs")
            return real.put(*given, **options)

    monkeypatch.setattr(mine, "_obstore", Slow())
    with pytest.raises(ChangedError):
        mine.replace("zarr.json", b"mine", seen=b"1")
    assert other.read("zarr.json") == b"theirs"


@pytest.mark.parametrize("url", ["nope://x/y", "s3://", "s3:///x"])
def test_a_url_that_nobody_knows(url: str) -> None:
    with pytest.raises(StoreError, match="cannot be used"):
        objects_at(url)
