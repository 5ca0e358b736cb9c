"""How the command line ends: no error shows a traceback."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from query.cli import group
from tests.support.commands import Run
from tests.support.written_stores import filled


def fails(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (KeyboardInterrupt(), 130, "What is finished is kept"),
        (OSError(28, "No space left on device", "out/x"), 1, "out/x: No space left on device"),
        (ZeroDivisionError("\x1b[2J"), 70, "unexpected ZeroDivisionError"),
    ],
)
def test_how_a_command_ends(
    error: BaseException,
    status: int,
    told: str,
    *,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = filled(tmp_path / "s.gradstore")
    monkeypatch.setattr(group.cli.commands["info"], "callback", lambda **_: fails(error))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shown = run("info", store.path, status=status)
    assert told in shown
    assert "\x1b" not in shown
    if status == 70:
        file = re.search(r"in (\S+\.log)", shown)
        assert file is not None
        assert "ZeroDivisionError" in Path(file[1]).read_text()


def test_wrong_usage_and_help(run: Run) -> None:
    assert "No such option" in run("info", "--surprise", status=2)
    assert "No such command" in run("surprise", status=2)
    assert "Usage" in run("info", "--help")
