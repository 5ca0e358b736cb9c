"""Progress of long work: what, how far, how fast, and how long it still takes."""

from __future__ import annotations

from threading import Event, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")

# A bar shows after so many seconds, and is drawn anew at least as often as that.
_DELAY: Final = 1.0
_TICK: Final = 2.0


class Bar(tqdm):  # type: ignore[type-arg]
    """A progress bar that also shows that time goes by while one long step is under way."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._over = Event()
        settings: Any = {"delay": _DELAY, "mininterval": 0.5, "dynamic_ncols": True, **kwargs}
        super().__init__(*args, **settings)
        self._drawn = monotonic()
        if not self.disable:
            Thread(target=self._tick, daemon=True, name="progress").start()

    def doing(self, step: str) -> None:
        """Say which step is under way, such as `projecting`; nothing if it is the usual one."""
        self.set_postfix_str(step, refresh=False)

    def update(self, n: float | None = 1) -> bool | None:
        """Advance by `n`."""
        self._drawn = monotonic()
        return super().update(n)

    def _tick(self) -> None:
        while not self._over.wait(_TICK):
            if monotonic() - self._drawn >= _TICK:
                self.refresh()

    def close(self) -> None:
        """Draw it for the last time."""
        self._over.set()
        super().close()


def progress(total: int, what: str, unit: str) -> Bar:
    """A progress bar to advance by hand with `update(n)`. It shows after the first second."""
    return Bar(total=total, desc=what, unit=f" {unit}")


def track(items: Iterable[T], what: str, unit: str) -> Iterable[T]:
    """`items`, with a progress bar that shows after the first second."""
    bar: Iterable[T] = Bar(items, desc=what, unit=f" {unit}")
    return bar
