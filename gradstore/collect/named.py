"""Names that this user gave to gradstore: datasets and checkpoints.

A store records the names that it was made from, and a stranger's store may record any. So a
recorded name is followed only if the user gave it once, on this machine; if it lies in the folder
that holds the store; or if the user says so (`follow`). No store can add to the list of given
names. A name that is not followed is not looked at either: even that may call a network
folder.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_MOST_BYTES: Final = 1 << 24
_HERE: Final[set[str]] = set()
"""Names given in this process: the list cannot always be written."""


def follow(names: Iterable[str | Path]) -> None:
    """Note names as given by the user. They stay so in later processes, if that can be written."""
    both = [(_whole(name), _real(name)) for name in names]
    new = {one for pair in both for one in pair} - _HERE
    new -= _listed() if new else set()
    _HERE.update(new)
    with suppress(OSError, RuntimeError):  # a home folder may be missing or not writable
        if new:
            file = _file()
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as out:
                out.write("".join(json.dumps(name) + "\n" for name in sorted(new)))


def may_follow(name: str, store: str) -> bool:
    """Whether a name that a store records may be followed.

    Args:
        name: path of a dataset or of a checkpoint, or name of a dataset.
        store: path or URL of the store.
    """
    if name == "digits" or _whole(name) in _HERE or _whole(name) in _listed():
        return True
    try:
        return not _elsewhere(name) and not _elsewhere(store) and _is_beside(name, store)
    except ValueError:  # no path has such characters
        return False


def _is_beside(name: str, store: str) -> bool:
    """Whether a path lies in the folder that holds a store, and that is not a home folder."""
    for whole in (_whole, _real):  # a path that leads elsewhere by its text is not looked at
        around = Path(whole(store)).parent
        with suppress(RuntimeError):
            if Path(whole(Path.home())).is_relative_to(around):
                return False
        if not Path(whole(name)).is_relative_to(around):
            return False
    return True


def _elsewhere(name: str) -> bool:
    return "://" in name or name.startswith(("\\\\", "//"))


def _whole(name: str | Path) -> str:
    """A path without relative steps; another name as it is."""
    text = os.fspath(name)
    return text if text == "digits" or _elsewhere(text) else os.path.abspath(text)  # noqa: PTH100


def _real(name: str | Path) -> str:
    """A path without links and relative steps; another name as it is."""
    text = os.fspath(name)
    return text if text == "digits" or _elsewhere(text) else os.path.realpath(text)


def _file() -> Path:
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local/state") / "gradstore/named"


def _listed() -> set[str]:
    try:
        with _file().open("rb") as file:
            lines = file.read(_MOST_BYTES).splitlines()
    except (OSError, RuntimeError):
        return set()
    found = set()
    for line in lines:
        with suppress(ValueError, RecursionError):  # two processes may have written at once
            found.add(str(json.loads(line)))
    return found
