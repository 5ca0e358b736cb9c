"""Presents WebDataset's tar files: the members of one name before the first dot are a sample."""

from __future__ import annotations

import json
import tarfile
from typing import TYPE_CHECKING, Any, Final

from gradstore.collect.data.decoding import Encoded
from gradstore.collect.data.folders import IMAGE_SUFFIXES
from gradstore.errors import DatasetError, UnreadableError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_CAPTION: Final = "txt"
_CLASS: Final = "cls"
_COLUMNS: Final = "json"
_KNOWN: Final = {suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES} | {
    _CAPTION,
    _CLASS,
    _COLUMNS,
}
_MOST_TEXT: Final = 1 << 20

# File, offset and length of a member.
_Member = tuple["Path", int, int]


class Tars:
    """Samples of WebDataset's tar files.

    `KEY.png` (or another image) is the image of sample `KEY`, `KEY.txt` its caption, `KEY.cls` its
    label, and `KEY.json` an object of further columns. Other members are left out. If there are
    several files, an id begins with the name of its file.

    Args:
        files: the tar files; uncompressed.

    Raises:
        DatasetError: if one cannot be read.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        found: dict[str, dict[str, _Member]] = {}
        for file in files:
            _index(file, found, f"{file.stem}/" if len(files) > 1 else "")
        images = _KNOWN - {_CAPTION, _CLASS, _COLUMNS}
        self._samples = [one for one in found.values() if images & one.keys()]
        self.ids = [name for name, one in found.items() if images & one.keys()]
        self._has = set().union(*self._samples)
        if not self._samples:
            raise DatasetError(
                f"dataset {files[0]} is empty: it holds no image ({', '.join(IMAGE_SUFFIXES)})."
            )

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, row: int) -> dict[str, Any]:
        members, name = self._samples[row], self.ids[row]
        item: dict[str, Any] = {}
        if _COLUMNS in members:
            try:
                item |= json.loads(_text(members[_COLUMNS], name))
            except (ValueError, TypeError, RecursionError) as error:
                raise UnreadableError(
                    f"sample {name!r} cannot be read: its json is no object: {error}. Repair it."
                ) from error
        for suffix, column in ((_CAPTION, "text"), (_CLASS, "label")):
            if suffix in self._has:
                item[column] = _text(members[suffix], name).strip() if suffix in members else None
        picture = next(suffix for suffix in members if suffix not in {_CAPTION, _CLASS, _COLUMNS})
        return {**item, "image": Encoded(_content(members[picture]))}


def _index(file: Path, found: dict[str, dict[str, _Member]], prefix: str) -> None:
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps all
                folder, _, base = member.name.rpartition("/")
                key, _, suffix = base.partition(".")
                suffix = suffix.lower()
                if not member.isreg() or member.issparse() or not key or suffix not in _KNOWN:
                    continue
                name = f"{prefix}{folder}/{key}" if folder else f"{prefix}{key}"
                own = found.setdefault(name, {})
                if suffix in own:
                    raise DatasetError(
                        f"dataset {file} holds {member.name!r} twice. Remove one of the two."
                    )
                own[suffix] = (file, member.offset_data, member.size)
    except (OSError, tarfile.TarError, ValueError) as error:
        raise DatasetError(
            f"dataset {file} cannot be read: {error}. It must be a tar file that is not compressed."
        ) from error


def _content(member: _Member) -> bytes:
    file, offset, size = member
    with file.open("rb") as opened:
        opened.seek(offset)
        return opened.read(min(size, file.stat().st_size))


def _text(member: _Member, name: str) -> str:
    if member[2] > _MOST_TEXT:
        raise UnreadableError(
            f"sample {name!r} cannot be read: a text of it has {member[2]:,} bytes, more than "
            f"{_MOST_TEXT:,}. Repair it."
        )
    return _content(member).decode("utf-8")
