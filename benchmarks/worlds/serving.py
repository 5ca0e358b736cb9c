"""A server that is killed: what it answers is compared."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from benchmarks.worlds.victims import ASKED, STORE, beside, copied, kernel

if TYPE_CHECKING:
    from benchmarks.worlds.victims import Collecting


@dataclass(frozen=True)
class Serving:
    """`serve`, asked for stored queries, a study, and new images, which take gradients.

    Each answer that came is written into a file.

    Attributes:
        name: as in `Victim`.
        checkpoints: folder of the checkpoints.
        stores: folder of collected stores, made by `Collecting`.
    """

    checkpoints: Path
    stores: Path
    name: str = "serve"

    def make(self) -> None:
        """See `Victim`."""
        copied(self.stores)
        Path("answers").mkdir()
        Path("tmp").mkdir()

    def run(self) -> None:
        """See `Victim`."""
        import torch

        from gradstore import serve

        torch.set_num_threads(1)
        tempfile.tempdir = "tmp"
        options: dict[str, Any] = {"timesteps": 2, "draws": 1, "port": 0}
        with serve(STORE, queries=ASKED, checkpoints=self.checkpoints, **options) as server:
            for number, path in enumerate(_requests()):
                told = _told(server.url, path)
                writing = Path(f"tmp/{number}.{os.getpid()}")
                writing.write_bytes(told)
                writing.replace(f"answers/{number:02d}.json")

    def finished(self, reference: dict[str, Any]) -> tuple[int, int]:
        """Answers, and those that are not what an undisturbed server answers."""
        answers = _answers()
        return len(answers), sum(reference["answers"][name] != answers[name] for name in answers)

    def content(self) -> dict[str, Any]:
        """All answers, the kernel, the store's bytes, and names that `verify` does not tell."""
        return {
            "answers": _answers(),
            "kernel": kernel(),
            "store": {
                str(file): sha256(file.read_bytes()).hexdigest()
                for file in Path(STORE).rglob("*")
                if file.is_file()
            },
            "beside": beside(),
        }


def _requests() -> list[str | int]:
    """What a server is asked: paths of its API; a number is the seed of a new image."""
    measures = ("tracin", "retrac", "trak")
    stored: list[str | int] = [
        f"/api/answer?query={query}&measure={measure}&k=5"
        for query in range(3)
        for measure in measures
    ]
    return [*stored, 0, "/api/breakdown?query=0&of=1", "/api/timesteps", 1]


def _told(url: str, asked: str | int) -> bytes:
    """The answer of a server.

    Raises:
        OSError: if it does not answer, or not well.
    """
    if isinstance(asked, str):
        return _got(url, "GET", asked)
    buffer = BytesIO()
    pixels = np.random.default_rng(asked).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    state = json.loads(_got(url, "POST", "/api/asked", buffer.getvalue()))
    while state["state"] in {"waiting", "running"}:
        sleep(0.01)
        state = json.loads(_got(url, "GET", f"/api/asked/{state['asked']}"))
    return _got(url, "GET", f"/api/answer?asked={state['asked']}&measure=retrac&k=5")


def _got(url: str, method: str, path: str, body: bytes | None = None) -> bytes:
    connection = HTTPConnection(urlsplit(url).netloc, timeout=300)
    try:
        connection.request(method, path, body)
        reply = connection.getresponse()
        content = reply.read()
        if reply.status >= 400:
            raise OSError(f"{path}: {reply.status} {content!r}")
        return content
    finally:
        connection.close()


def _answers() -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path("answers").iterdir()}


def make_served(folder: Path, collecting: Collecting) -> None:
    """Collect the stores of `Serving`."""
    import torch

    from gradstore import EventSpec, Samples, collect_queries, open_store

    here = Path.cwd()
    folder.mkdir()
    os.chdir(folder)
    try:
        collecting.run()
        images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
        events = EventSpec(events="planned", timesteps=2)
        collect_queries(open_store(STORE), Samples(images), ASKED, events=events)
    finally:
        os.chdir(here)
