"""Freed memory is used again while collecting, and returned afterwards."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

import torch

from gradstore.collect.pipeline.allocator import kept_memory

SIZE = 64 << 20  # glibc's own limit for what it may keep is 32 MiB
GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim")


def _faults(pieces: int) -> int:
    """Pages that the system provides while memory is allocated, used and freed repeatedly."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(pieces):
        torch.ones(SIZE, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_freed_memory_is_used_again() -> None:
    pages = SIZE // resource.getpagesize()
    with kept_memory():
        _faults(8)  # alignment leaves the first few pieces apart
        assert not GLIBC or _faults(8) < pages


def test_memory_is_returned_when_the_last_context_ends() -> None:
    if not GLIBC:
        with kept_memory(), kept_memory():
            torch.ones(SIZE, dtype=torch.uint8)
        return
    before = _resident()
    with kept_memory():
        with kept_memory():
            torch.ones(SIZE, dtype=torch.uint8)
        # Still kept: the outer context goes on.
        assert _resident() - before > SIZE // 2
    assert _resident() - before < SIZE // 2
