"""Ctrl-C at a chosen moment: a real SIGINT when this process opens its n-th file."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Opened:
    """Counts the files that are opened while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.count = 0
        self.last: int | None = None
        sys.addaudithook(self._heard)  # for as long as the process lives

    def _heard(self, event: str, _: object) -> None:
        if self.on and event == "open":
            self.count += 1
            if self.count == self.last:
                os.kill(os.getpid(), signal.SIGINT)


_OPENED = _Opened()


@contextmanager
def interrupted(at: int | None) -> Iterator[None]:
    """Context in which SIGINT comes with the n-th file that is opened, or never."""
    _OPENED.count, _OPENED.last, _OPENED.on = 0, at, True
    try:
        yield
    finally:
        _OPENED.on = False


def opened() -> int:
    """Number of files that were opened in the last context."""
    return _OPENED.count
