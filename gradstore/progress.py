"""Progress bars for long work: task, position, speed and remaining time.

Bars are off with `GRADSTORE_PROGRESS=0`, with `gradstore --quiet`, and inside `quietly`, which also
hides the steps that are logged on `logging.getLogger("gradstore")` at level INFO.
"""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Event, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")

# Seconds until a bar appears, and the maximum seconds between redraws.
_DELAY: Final = 1.0
_TICK: Final = 2.0
VARIABLE: Final = "GRADSTORE_PROGRESS"

_quiet: ContextVar[bool] = ContextVar("quiet", default=False)
_watcher: ContextVar[Callable[[str, int, int], None] | None] = ContextVar("watcher", default=None)


@contextmanager
def quietly(quiet: bool = True) -> Iterator[None]:
    """Hide progress bars and logged steps in this context, if `quiet`. Warnings are still logged.

    Examples:
        >>> with quietly():
        ...     for _ in track(range(3), "counting", "numbers"):
        ...         pass
    """
    before = _quiet.set(quiet or _quiet.get())
    try:
        yield
    finally:
        _quiet.reset(before)


@contextmanager
def watched(tell: Callable[[str, int, int], None]) -> Iterator[None]:
    """Tell another interface of the work in this context: task, position and total.

    Args:
        tell: called by whichever thread works, also if bars are off.

    Examples:
        >>> with watched(lambda *told: print(told)), progress(2, "counting", "numbers") as bar:
        ...     _ = bar.update()
        ('counting', 1, 2)
    """
    before = _watcher.set(tell)
    try:
        yield
    finally:
        _watcher.reset(before)


def _heard(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or not _quiet.get()


logging.getLogger("gradstore").addFilter(_heard)


def _off() -> bool:
    return _quiet.get() or os.environ.get(VARIABLE, "").lower() in {"0", "off", "false", "no"}


class Bar(tqdm):  # type: ignore[type-arg]
    """A progress bar that also redraws its elapsed time during one long step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._over = Event()
        settings: Any = {
            "delay": _DELAY,
            "mininterval": 0.5,
            "dynamic_ncols": True,
            "disable": _off(),
            **kwargs,
        }
        super().__init__(*args, **settings)
        self._drawn = monotonic()
        self._tell, self._done = _watcher.get(), 0
        self._task, self._whole = settings.get("desc", ""), settings.get("total") or 0
        if not self.disable:
            Thread(target=self._tick, daemon=True, name="progress").start()

    def doing(self, step: str) -> None:
        """Show the current step, such as `projecting`; an empty string for the usual step."""
        self.set_postfix_str(step, refresh=False)

    def update(self, n: float | None = 1) -> bool | None:
        """Advance by `n`."""
        self._drawn = monotonic()
        if self._tell is not None:
            self._done += int(n or 0)
            self._tell(self._task, self._done, self._whole)
        return super().update(n)

    def _tick(self) -> None:
        while not self._over.wait(_TICK):
            if monotonic() - self._drawn >= _TICK:
                self.refresh()

    def close(self) -> None:
        """Draw the bar for the last time."""
        self._over.set()
        super().close()


def progress(total: int, what: str, unit: str) -> Bar:
    """A progress bar that the caller advances with `update(n)`. It appears after one second."""
    return Bar(total=total, desc=what, unit=f" {unit}")


def track(items: Iterable[T], what: str, unit: str) -> Iterable[T]:
    """`items`, with a progress bar that appears after one second."""
    bar: Iterable[T] = Bar(items, desc=what, unit=f" {unit}")
    return bar
