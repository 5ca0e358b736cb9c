"""A store on a system without the POSIX-only functions, removed here as on Windows.

The test runs `python -m tests.gradstore.test_platforms FOLDER` and checks it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

LACKING = ("O_NONBLOCK", "O_DIRECTORY", "preadv", "pread", "readv", "pwrite", "pwritev")


def bare(folder: Path) -> None:
    """Make a store, read it, change it and check it; and claim tasks."""
    import filelock

    from gradstore import delete, open_store, vacuum
    from gradstore.collect.pipeline.claims import Claims
    from gradstore.collect.pipeline.executors import Task
    from gradstore.store.verify import verify
    from tests.support.written_stores import everything, filled, grown, require_equal

    store = grown(filled(folder / "s.gradstore"), ["a", "b"])
    before = everything(store)
    after = vacuum(delete(store, ["s3", "a"]))
    kept = [row for row in range(12) if row not in {3, 10}]
    require_equal(everything(after), {name: array[kept] for name, array in before.items()})
    assert not filelock.has_fcntl
    problems = {report.problem for report in verify(open_store(folder / "s.gradstore"))}
    tasks, done = [Task(0, 0), Task(1, 2)], list[Task]()
    Claims([folder / ".s.gradstore.claims"], done.__contains__).run(tasks, done.append)
    locks = [str(file) for file in folder.rglob("*.lock")]
    sys.stdout.write(f"{problems} {done == tasks} {locks} {[f.name for f in folder.iterdir()]}\n")


def test_a_store_without_what_only_posix_has(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gradstore.test_platforms", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "{None} True [] ['s.gradstore']\n"


if __name__ == "__main__":
    import pytest  # noqa: F401  # the tests' own imports need these functions
    import torch  # noqa: F401

    for lacking in [name for name in sys.modules if name.split(".")[0] == "filelock"]:
        del sys.modules[lacking]  # torch has already used it
    sys.modules["fcntl"] = None  # type: ignore[assignment]
    for lacking in LACKING:
        delattr(os, lacking)
    bare(Path(sys.argv[1]))
