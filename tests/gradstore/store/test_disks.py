"""A full disk, a read-only disk and a lost mount, during a real collect."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.disk_faults import MEND

ISOLATED = ["unshare", "--map-root-user", "--mount"]


def test_disks_that_fail(tmp_path: Path) -> None:
    """In its own mount namespace, where any user may mount and no other process sees it."""
    try:
        subprocess.run([*ISOLATED, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this system lets nobody make a mount namespace: {error}")
    done = subprocess.run(
        [*ISOLATED, sys.executable, "-m", "tests.support.disk_faults", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("TOLD ")]
    told = json.loads(line.removeprefix("TOLD "))
    for kind, reason in (
        ("full", "No space left on device"),
        ("read-only", "Read-only file system"),
        ("gone", "the store's folder is gone"),
    ):
        assert reason in told[kind], told
        assert MEND in told[kind], told
