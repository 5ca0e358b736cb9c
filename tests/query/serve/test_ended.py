"""A server that is interrupted, stopped for a while, killed, or has no disk space left."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

import gradstore as gs
from gradstore.flags.serve import ServeConfig
from query.serve.server import serve_config
from tests.query.serve.conftest import Place, picture
from tests.support.commands import Run
from tests.support.disks import full
from tests.support.interrupting import interrupted, opened
from tests.support.served import Client, Started

ENDED = "The server ended; the store is as it was."
SLOW = ["--timesteps", "60", "--draws", "4"]


@contextmanager
def running(
    place: Place, temporary: Path, *flags: str
) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    """A server whose temporary files lie in a folder, which knows its checkpoints."""
    temporary.mkdir(exist_ok=True)
    known = [f"--checkpoints={one}" for one in place.checkpoints]
    started = Started(
        place.store.location,
        f"--queries={place.queries.location}",
        *known,
        *flags,
        env={"TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
    )
    try:
        yield started.process, Client(started)
    finally:
        started.process.kill()
        started.process.communicate()


def asked(client: Client, content: bytes, *states: str) -> str:
    """Ask an image, and wait until it is in one of some states."""
    name: str = client.post("asked", content).json["asked"]
    until = monotonic() + 120
    while client.get(f"asked/{name}").json["state"] not in states:
        assert monotonic() < until
        sleep(0.02)
    return name


def answer(client: Client, name: str) -> Any:
    return client.get("answer", measure="retrac", k=5, asked=name).json


def folders(temporary: Path) -> set[Path]:
    return set(temporary.glob("gradstore-asked-*"))


def test_ctrl_c(place: Place, tmp_path: Path) -> None:
    """Also while gradients are computed, which are finished first."""
    for content in (None, picture(tmp_path / "given.png")):
        with running(place, tmp_path / "tmp", *SLOW) as (process, client):
            if content is not None:
                asked(client, content, "running")
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=120)
        assert process.returncode == 130
        assert f"Interrupted. {ENDED}" in told
        assert "Traceback" not in told
        assert folders(tmp_path / "tmp") == set()


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_ctrl_c_while_it_starts(
    place: Place, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    import_module("query.cli.entry")  # until then, nothing is begun and nothing is said
    store = place.store.location
    for _ in range(2):  # the first opens what it imports
        with interrupted(None):
            server = serve_config(ServeConfig(store=store, port=0))
        server.stop()
    with interrupted(max(1, int(share * opened()))):
        told = run("serve", store, "--port", 0, "--no-browser", status=130)
    assert ENDED in told
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_stood_still_goes_on(place: Place, tmp_path: Path) -> None:
    """Meanwhile another one starts and ends, and takes nothing away."""
    content, temporary = picture(tmp_path / "given.png"), tmp_path / "tmp"
    with running(place, temporary, *SLOW) as (_, client):
        expected = answer(client, asked(client, content, "done"))
    with running(place, temporary, *SLOW) as (process, client):
        asked(client, content, "running")
        process.send_signal(signal.SIGSTOP)
        with running(place, temporary) as (other, _):
            other.send_signal(signal.SIGINT)
            assert other.wait(60) == 130
        process.send_signal(signal.SIGCONT)
        assert answer(client, asked(client, content, "done")) == expected


def test_what_a_killed_server_left_is_removed_by_the_next(place: Place, tmp_path: Path) -> None:
    content, temporary = picture(tmp_path / "given.png"), tmp_path / "tmp"
    with running(place, temporary, *SLOW) as (process, client):
        asked(client, content, "done")
        (left,) = (one for one in folders(temporary) if one.is_dir())
        assert left.stat().st_mode & 0o777 == 0o700
        assert any(left.iterdir())
        process.kill()
        process.wait()
    assert left.is_dir()
    # Anybody may make such names in a folder of temporary files.
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "mine").touch()
    for name in ("gradstore-asked-1", "gradstore-asked-2.lock"):
        (temporary / name).symlink_to(victim if name.endswith("1") else victim / "mine")
    (temporary / "gradstore-asked-1.lock").touch()
    with running(place, temporary) as (process, _):
        assert not left.exists()
        assert (victim / "mine").exists()
        own = {one.name for one in folders(temporary)} - {
            "gradstore-asked-1", "gradstore-asked-2.lock",
        }  # fmt: skip
        assert len(own) == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert own.isdisjoint(one.name for one in folders(temporary))


def test_a_full_disk(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told of the image, other questions are answered, and it can be asked again."""
    temporary, own = tmp_path / "tmp", tmp_path / "own"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    content = picture(tmp_path / "given.png")
    options: dict[str, Any] = {"port": 0, "timesteps": 3, "draws": 1}
    store = shutil.copytree(place.store.path, own / "train.gradstore")
    with gs.serve(store, queries=place.queries, checkpoints=place.checkpoints, **options) as server:
        client = Client(server)
        with full():
            found = client.asked(client.post("asked", content))
            assert found["state"] == "failed"
            assert "cannot be" in found["error"]
            assert str(temporary) not in found["error"]
            name = place.queries.manifest.ids[0]
            for measure in ("retrac", "trak"):  # a kernel that cannot be kept is computed
                assert client.get("answer", query=name, measure=measure, k=3).status == 200
            assert client.get("map").status == 200
            assert [one.name for one in own.iterdir()] == ["train.gradstore"]
        found = client.asked(client.post("asked", content))
        assert found["state"] == "done"
        assert client.get("answer", asked=found["asked"], k=3).status == 200
    assert list(temporary.iterdir()) == []
