"""Keeps freed memory in the process while gradients are computed.

Every layer's per-sample gradients are allocated, passed on and freed. The C library by default
returns such large pieces to the system and asks for them again, and the system clears every page
of them anew. For a model of 35 million parameters this took a sixth of a plain training step.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

# Numbers of glibc's mallopt, from its malloc.h.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_MMAP_MAX: Final = -4
_LARGEST: Final = 2**31 - 1

_lock = Lock()
_holders = 0


@contextmanager
def kept_memory() -> Iterator[None]:
    """Context in which freed memory stays in the process; afterwards it is returned.

    For the whole process. Without effect where the C library is not glibc. Contexts may be nested
    and may overlap in several threads: memory is returned when the last one ends.

    Examples:
        >>> with kept_memory():
        ...     pass
    """
    _hold(1)
    try:
        yield
    finally:
        _hold(-1)


def _hold(change: int) -> None:
    global _holders
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    with _lock:
        before, _holders = _holders, _holders + change
        if not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
            return
        if before == 0:
            libc.mallopt(_MMAP_MAX, 0)
            libc.mallopt(_TRIM_THRESHOLD, _LARGEST)
        elif _holders == 0:
            # Where glibc's own adjustment ends in a process that frees large pieces.
            libc.mallopt(_MMAP_MAX, 1 << 16)
            libc.mallopt(_MMAP_THRESHOLD, 32 << 20)
            libc.mallopt(_TRIM_THRESHOLD, 64 << 20)
            libc.malloc_trim(0)
