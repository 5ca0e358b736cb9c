"""The command line in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from query import cli

TRAIN = [
    "train", "--dataset", "digits", "--limit", "40", "--epochs", "2", "--checkpoint-every", "1",
    "--channels", "8,8", "--batch-size", "8",
]  # fmt: skip


class Run:
    """Runs `gradstore ARGUMENTS` in this process and keeps its output."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, *arguments: object, status: int = 0) -> str:
        self._monkeypatch.setattr(sys, "argv", ["gradstore", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = self._capsys.readouterr()
        assert (stopped.value.code or 0) == status, err
        assert "Traceback" not in err
        return out if status == 0 else err


def words(command: str, place: Path) -> list[str]:
    """The words of a command in which `{place}` is a folder."""
    return command.format(place=place).split()
