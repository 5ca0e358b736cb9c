"""A served store, and requests to it without any library that might mend them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit

import gradstore as gs


@dataclass
class Reply:
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


class Served(Protocol):
    """A server, in this process or in one of its own."""

    url: str


class Started:
    """`gradstore serve` in a process of its own.

    Args:
        store: the store.
        flags: further flags of the command.
        browser: whether it opens a browser.
        env: further variables of its environment.
        stderr: where its standard error goes.
    """

    def __init__(
        self,
        store: str | Path,
        *flags: object,
        browser: bool = False,
        env: Mapping[str, str] | None = None,
        stderr: int | None = None,
    ) -> None:
        flags = flags if browser else (*flags, "--no-browser")
        self.process = subprocess.Popen(
            [
                sys.executable, "-c", "from query.cli import main; main()",
                "serve", str(store), "--port", "0", *map(str, flags),
            ],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(gs.__file__).parents[1]), **(env or {})},
        )  # fmt: skip
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().rpartition(" ")[2].strip()
        assert self.url.startswith("http://127.0.0.1:")

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.communicate(timeout=60)


@dataclass
class Client:
    """Sends requests to a server on this machine."""

    server: Served

    @property
    def port(self) -> int:
        port = urlsplit(self.server.url).port
        assert port is not None
        return port

    def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, dict(headers or {}))
            found = connection.getresponse()
            names = {name.lower(): value for name, value in found.getheaders()}
            return Reply(found.status, names, found.read())
        finally:
            connection.close()

    def get(self, path: str, **parameters: Any) -> Reply:
        return self.send("GET", f"/api/{path}?{urlencode(parameters, doseq=True)}")

    def post(self, path: str, given: Any) -> Reply:
        content = given if isinstance(given, bytes) else json.dumps(given).encode()
        kind = "application/octet-stream" if isinstance(given, bytes) else "application/json"
        return self.send("POST", f"/api/{path}", content, {"content-type": kind})

    def asked(self, reply: Reply) -> Any:
        """Wait for the gradients of an image."""
        assert reply.status == 202, reply.content
        found, until = reply.json, monotonic() + 240
        while found["state"] in {"waiting", "running"}:
            assert monotonic() < until
            sleep(0.05)
            found = self.get(f"asked/{found['asked']}").json
        return found


@contextmanager
def pages(folder: Path) -> Iterator[str]:
    """A folder of pages, served from another origin of this machine."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
