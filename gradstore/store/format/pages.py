"""Sizes of the pages of a Parquet file, read from the pages themselves.

A decoder allocates what the header of a page says. The footer repeats these sizes, and may lie.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

# The part of a page's header that is looked at; statistics at its end may be longer.
_HEADER_BYTES: Final = 1 << 16
_DEEPEST: Final = 8
_MOST_INTEGER: Final = 10  # bytes of a 64-bit integer

_DICTIONARY: Final = 2  # kinds of pages
_DATA, _DATA_2 = 0, 3

DICTIONARY_CODED: Final = frozenset({2, 8})  # encodings of values
PREFIX_CODED: Final = 7


@dataclass(frozen=True)
class Page:
    """A page of a column chunk, as its header describes it.

    Attributes:
        dictionary: whether it holds the values that other pages refer to.
        nbytes: its bytes when decompressed.
        values: number of its values, with nulls.
        encoding: number of the encoding of its values.
        start: its first byte in the file, after its header.
        stored: its bytes in the file.
    """

    dictionary: bool
    nbytes: int
    values: int
    encoding: int
    start: int
    stored: int


def pages(file: BinaryIO, start: int, length: int) -> Iterator[Page]:
    """The pages of a column chunk.

    Args:
        file: the file.
        start: first byte of the chunk.
        length: bytes of the chunk.

    Raises:
        ValueError: if a page has no readable header.
    """
    place, end = start, start + length
    while place < end:
        file.seek(place)
        header, size = _Compact(file.read(min(_HEADER_BYTES, end - place))).header()
        kind, nbytes, stored = (_count(header, field, place) for field in (1, 2, 3))
        inner = header.get({_DATA: 5, _DICTIONARY: 7, _DATA_2: 8}.get(kind, 0))
        values = encoding = 0
        if isinstance(inner, dict):
            values = _count(inner, 1, place)
            encoding = _count(inner, 4 if kind == _DATA_2 else 2, place)
        place += size
        yield Page(kind == _DICTIONARY, nbytes, values, encoding, place, stored)
        place += stored


def _count(header: dict[int, Any], field: int, place: int) -> int:
    value = header.get(field)
    if type(value) is not int or value < 0:
        raise ValueError(f"the header of the page at byte {place} has no number {field}")
    return value


def longest(dictionary: bytes) -> int:
    """Length of the longest text of a decompressed dictionary page, in bytes."""
    place, found = 0, 0
    while place + 4 <= len(dictionary):
        length = int.from_bytes(dictionary[place : place + 4], "little")
        found = max(found, length)
        place += 4 + length
    return min(found, len(dictionary))


def size_of(file: BinaryIO) -> int:
    """Bytes of an open file."""
    return file.seek(0, os.SEEK_END)


class _Compact:
    """Reads one structure in Thrift's compact protocol, in which headers are written.

    Args:
        content: bytes that begin with the structure.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._place = 0

    def header(self) -> tuple[dict[int, Any], int]:
        """Integers and structures by the number of their field, and the bytes that were read."""
        try:
            return self._structure(0), self._place
        except IndexError:
            raise ValueError("the header of a page ends early") from None

    def _structure(self, depth: int) -> dict[int, Any]:
        if depth > _DEEPEST:
            raise ValueError("the header of a page is nested too deeply")
        found, number = {}, 0
        while byte := self._byte():
            number = number + (byte >> 4) if byte >> 4 else self._signed()
            found[number] = self._value(byte & 15, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if kind in {1, 2}:  # a truth value, within the field's own byte
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in {4, 5, 6}:
            return self._signed()
        if kind == 7:
            self._skip(8)
        elif kind == 8:
            self._skip(self._unsigned())
        elif kind == 12:
            return self._structure(depth + 1)
        else:  # no page's header has lists or maps
            raise ValueError(f"the header of a page has a field of kind {kind}")
        return None

    def _byte(self) -> int:
        self._place += 1
        return self._content[self._place - 1]

    def _skip(self, count: int) -> None:
        self._place += count
        if self._place > len(self._content):
            raise ValueError("the header of a page ends early")

    def _unsigned(self) -> int:
        value = 0
        for shift in range(_MOST_INTEGER):
            byte = self._byte()
            value |= (byte & 127) << (7 * shift)
            if byte < 128:
                return value
        raise ValueError("the header of a page has too long a number")

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
