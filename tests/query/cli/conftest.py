"""What the commands make."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from query import cli
from tests.support.commands import TRAIN


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with run, store and indexes, made by the commands."""
    folder = tmp_path_factory.mktemp("road")
    for arguments in (
        [*TRAIN, "--out", folder / "run"],
        ["collect", folder / "run" / "collect.yaml", "--proj-dim", "64"],
        ["index", "--store", folder / "run" / "train.gradstore"],
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["gradstore", *map(str, arguments)])
            with pytest.raises(SystemExit) as stopped:
                cli.main()
        assert not stopped.value.code
    return folder
