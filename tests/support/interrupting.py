"""Ctrl-C at a chosen moment: a real SIGINT when this process opens its n-th file."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gradstore import open_store
from gradstore.store.opening import looks_like_store
from gradstore.store.verify import verify
from tests.support.commands import Run, words


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


def interrupt_anywhere(
    command: str,
    made: Path,
    scratch: Path,
    run: Run,
    *,
    moments: int = 4,
    told: str = "is kept",
    again: Callable[[Path], None] = lambda place: None,
) -> None:
    """Interrupt a command at several moments, each in a copy of a folder; then run it again.

    Args:
        command: the command; `{place}` in it is the copy.
        made: the folder.
        scratch: the copy.
        run: runs the command.
        moments: number of moments.
        told: what it must say.
        again: does in the copy what it says, before the command is run again.
    """

    def copy() -> Path:
        shutil.rmtree(scratch, ignore_errors=True)
        return Path(shutil.copytree(made, scratch))

    for _ in range(2):  # the first opens what it imports
        place = copy()
        with interrupted(None):
            run(*words(command, place))
    whole, expected = opened(), names(place)
    for moment in range(1, moments + 1):
        place = copy()
        before = revisions(place)
        with interrupted(max(1, whole * moment // (moments + 1))):
            shown = run(*words(command, place), status=130)
        assert told in shown
        changed = revisions(place) != before
        if changed and command.startswith(("delete", "drop", "merge", "append", "add")):
            continue  # it was done when it was interrupted, and cannot be done twice
        again(place)
        run(*words(command, place))
        revisions(place)
        assert names(place) == expected


def names(place: Path) -> set[str]:
    """Files, without those of random names and what `verify` tells and `vacuum` removes."""
    return {
        str(file.relative_to(place))
        for file in place.rglob("*")
        if file.is_file()
        and ".building-" not in str(file)
        and not file.name.endswith(".lock")
        and not {"parts", "deleted", "commits", "metrics"} & set(file.parts)
    }


def revisions(place: Path) -> dict[str, int]:
    """The revision of each store, of which no sealed shard may be damaged."""
    found = {}
    for path in sorted(place.rglob("*.gradstore")):
        if not path.name.startswith(".") and looks_like_store(path):
            store = open_store(path)
            assert not any(report.problem and report.sealed for report in verify(store))
            found[str(path)] = store.spec.revision
    return found
