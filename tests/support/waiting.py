"""Waiting for a condition."""

from __future__ import annotations

from pathlib import Path
from time import monotonic, sleep
from typing import Any


def wait_for(mark: Path, victim: Any) -> None:
    until = monotonic() + 120
    while not mark.exists():
        assert victim.is_alive()
        assert monotonic() < until
        sleep(0.05)
