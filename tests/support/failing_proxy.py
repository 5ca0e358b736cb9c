"""A proxy before an S3 server that fails as networks and servers do."""

from __future__ import annotations

import http.client
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any
from urllib.parse import urlsplit

Fault = Callable[[int, str, str], str | None]
"""From number, method and path of a request: `500`, `503`, `cut` (half of the answer), `lost`
(done, but without an answer), `unheard` (neither), `late` (as `lost`, but the connection stays
open), `hangs` (as `unheard`, likewise), `stale` (the answer that the same request had before), or
None."""


@contextmanager
def proxied(url: str, fault: Fault) -> Iterator[tuple[str, Counter[str]]]:
    """The proxy's own URL, and how often it failed in which way."""
    target = urlsplit(url).netloc
    done: Counter[str] = Counter()
    lock = Lock()
    numbers = iter(range(10**9))
    over = Event()
    earlier: dict[str, tuple[http.client.HTTPResponse, bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:  # the client went away
                self.close_connection = True

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with lock:
                how = fault(next(numbers), self.command, self.path)
                done[how or "well"] += 1
            if how == "unheard":
                self.close_connection = True
                return
            if how == "hangs":
                over.wait()
                self.close_connection = True
                return
            if how in {"500", "503"}:
                self.send_response(int(how))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            connection = http.client.HTTPConnection(target, timeout=30)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            with lock:
                before = earlier.get(self.path, (answer, content))
                earlier[self.path] = answer, content
            if how == "stale":
                answer, content = before
            if how == "late":
                over.wait()
            if how in {"lost", "late"}:
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in {"transfer-encoding", "connection", "content-length"}:
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            if how == "cut":
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
                return
            self.wfile.write(content)

    for method in ("GET", "PUT", "POST", "HEAD", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.forward)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", done
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()
