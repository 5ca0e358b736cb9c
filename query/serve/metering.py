"""Counts of a running server, in the text format of Prometheus."""

from __future__ import annotations

from collections import Counter, defaultdict
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from query.serve.guard import App, Message, Receive, Send


class Metered:
    """Counts the requests of an application.

    Args:
        app: the application.
        meter: what counts them.
    """

    def __init__(self, app: App, meter: Meter) -> None:
        self._app, self._meter = app, meter

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI says."""
        start, status = monotonic(), 500

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, seen)
        finally:
            if scope["type"] == "http":
                route = getattr(scope.get("route"), "path", "other")
                self._meter.add(route, status, monotonic() - start)


class Meter:
    """Counts requests by route and status, and their seconds."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._since = monotonic()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def add(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        with self._lock:
            self._requests[route, status] += 1
            self._seconds[route] += seconds

    def text(self, now: Mapping[str, float]) -> str:
        """All counts.

        Args:
            now: further figures by name.
        """
        with self._lock:
            return "\n".join([*self._lines(now), ""])

    def _lines(self, now: Mapping[str, float]) -> Iterator[str]:
        yield "# TYPE gradstore_requests_total counter"
        for (route, status), count in sorted(self._requests.items()):
            yield f'gradstore_requests_total{{route="{route}",status="{status}"}} {count}'
        yield "# TYPE gradstore_request_seconds_total counter"
        for route, seconds in sorted(self._seconds.items()):
            yield f'gradstore_request_seconds_total{{route="{route}"}} {seconds:.6f}'
        for name, value in {"up_seconds": monotonic() - self._since, **now}.items():
            yield f"# TYPE gradstore_{name} gauge"
            yield f"gradstore_{name} {value:g}"
