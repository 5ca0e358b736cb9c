"""Progress of long work: what, how far, how fast, and how long it still takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")


def progress(total: int, what: str, unit: str) -> tqdm[Any]:
    """A progress bar to advance by hand with `update(n)`. It shows after the first second."""
    return tqdm(
        total=total, desc=what, unit=f" {unit}", delay=1, mininterval=0.5, dynamic_ncols=True
    )


def track(items: Iterable[T], what: str, unit: str) -> Iterable[T]:
    """`items`, with a progress bar that shows after the first second."""
    bar: Iterable[T] = tqdm(
        items, desc=what, unit=f" {unit}", delay=1, mininterval=0.5, dynamic_ncols=True
    )
    return bar
