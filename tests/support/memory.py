"""Memory of this process, with that of the libraries below Python."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def bounded(nbytes: int) -> Iterator[None]:
    """Context that takes at most so many bytes at once."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present value
    before = _resident("VmRSS")
    yield
    assert _resident("VmHWM") - before < nbytes


def _resident(field: str) -> int:
    """Present (VmRSS) or peak (VmHWM) bytes."""
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0])
