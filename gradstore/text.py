"""Text from files, made safe to print: it could control a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Escape unprintable characters other than line ends.

    Examples:
        >>> printable("a\x1b[2J\nb")
        'a\\x1b[2J\nb'
    """
    return "\n".join(map(one_line, text.split("\n")))


def one_line(text: str) -> str:
    r"""Escape unprintable characters, line ends included.

    Examples:
        >>> one_line("a\x1b[2J\nb")
        'a\\x1b[2J\\nb'
    """
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )
