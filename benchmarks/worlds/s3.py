"""A real server of the S3 protocol on loopback, with a count of its requests."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_REQUEST = re.compile(r'"(?:\x1b\[\d+m)*(GET|PUT|POST|HEAD|DELETE) /bucket(\S*) HTTP')


@dataclass
class Server:
    """The server.

    Attributes:
        url: where it listens.
        log: its access log, a line for each request.
    """

    url: str
    log: Path

    @contextmanager
    def counted(self) -> Iterator[Counter[str]]:
        """Requests in the context, by method; `LIST` for a listing GET. Filled at its end."""
        counts: Counter[str] = Counter()
        start = self.log.stat().st_size
        yield counts
        time.sleep(0.05)  # the line is written after the answer
        with self.log.open(encoding="utf-8") as file:
            file.seek(start)
            for method, path in _REQUEST.findall(file.read()):
                counts["LIST" if "list-type" in path else method] += 1


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """A moto server with one bucket, `bucket`, in memory."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", folder / "s3.log"
    with log.open("wb") as out:
        server = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=out,
            stderr=out,
        )
        try:
            request = urllib.request.Request(f"{url}/bucket", method="PUT")  # noqa: S310
            for _ in range(300):
                try:
                    urllib.request.urlopen(request).close()  # noqa: S310
                    break
                except OSError:
                    time.sleep(0.1)
            else:
                raise RuntimeError(f"moto does not answer: {log.read_text()[-500:]}")
            yield Server(url, log)
        finally:
            server.terminate()
            server.wait()


ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
}
