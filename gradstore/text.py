"""Text from files, made safe to print."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Escape unprintable characters other than line ends: untrusted text could control a terminal.

    Examples:
        >>> printable("a\x1b[2Jb")
        'a\\x1b[2Jb'
    """
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode()
        for one in text
    )
