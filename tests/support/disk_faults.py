"""Run by `test_disks.py` in its own mount namespace, with `python -m`.

Collects on a disk that becomes full, read-only or lost after some shards, repairs it, and resumes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gradstore.collect import EventSpec, InProcess, ProjectorSpec, Samples, collect
from gradstore.errors import StoreError
from gradstore.store import writer
from gradstore.store.format.rows import ARRAYS
from gradstore.store.opening import open_store
from gradstore.store.reader import Store
from gradstore.store.verify import verify
from tests.support.worlds import save_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

AFTER = 3
MEND = "Free disk space or restore the disk, and run the same command again"


def mount(*arguments: str) -> None:
    subprocess.run(arguments, check=True)


def contents(store: Store) -> dict[str, Any]:
    return {
        f"{k}/{name}": getattr(store.rows(k), name)
        for k in range(store.checkpoints)
        for name in ARRAYS
    }


def refused(kind: str, do: Callable[[], object]) -> str:
    try:
        do()
    except StoreError as error:
        return str(error)
    raise AssertionError(f"{kind}: nothing was told")


def trial(kind: str, folder: Path, checkpoints: list[Path], expected: dict[str, Any]) -> str:
    """Break the disk after some shards and recover; return the error message."""
    below, disk = folder / f"{kind}-below", folder / f"{kind}-disk"
    below.mkdir()
    disk.mkdir()
    mount("mount", "-t", "tmpfs", "-o", "size=64m", "none", str(below))
    mount("mount", "--bind", str(below), str(disk))
    breaks: dict[str, Callable[[], None]] = {
        # Full to the last page.
        "full": lambda: mount("sh", "-c", f"head -c 64M /dev/zero > {below}/filler || true"),
        "read-only": lambda: mount("mount", "-o", "remount,ro,bind", str(disk)),
        "gone": lambda: mount("umount", "-l", str(disk)),
    }
    mends: dict[str, Callable[[], None]] = {
        "full": (below / "filler").unlink,
        "read-only": lambda: mount("mount", "-o", "remount,rw,bind", str(disk)),
        "gone": lambda: mount("mount", "--bind", str(below), str(disk)),
    }
    store = disk / "s.gradstore"
    sealed = 0

    def reached(step: str) -> None:
        nonlocal sealed
        sealed += step == "seal flushed"
        if step == "begun" and sealed == AFTER:
            breaks[kind]()

    def go_on(executor: InProcess | None = None) -> Store:
        return collect(
            Samples(torch.zeros(8, 1, 8, 8) + torch.arange(8).reshape(8, 1, 1, 1) / 8),
            checkpoints,
            store,
            events=EventSpec(events="planned", timesteps=2),
            projector=ProjectorSpec(proj_dim=64),
            shard_samples=2,
            engine="streaming",
            executor=executor,
        )

    writer.reached = reached
    # No claims: their open files prevent a read-only remount.
    told = refused(kind, lambda: go_on(InProcess()))
    writer.reached = lambda step: None
    if kind == "gone":
        if list(disk.iterdir()):
            raise AssertionError("something was written below the lost mount")
    else:
        good = [report for report in verify(open_store(store)) if report.problem is None]
        if len(good) != AFTER:
            raise AssertionError(f"{kind}: {len(good)} shards are whole, not {AFTER}")
        if MEND not in refused(kind, go_on):  # a user's retry before the disk is repaired
            raise AssertionError(f"{kind}: it is not told what to do")
    mends[kind]()
    found = contents(go_on())
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    left = [file for file in store.rglob(".*") if file.is_file()]
    if left:
        raise AssertionError(f"{kind}: {left} were left behind")
    return told


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    checkpoints = [save_checkpoint(folder / f"epoch-{n}", epoch=n) for n in (1,)]
    checkpoints.append(save_checkpoint(folder / "epoch-2", epoch=2, learning_rate_sum=0.3))
    expected = contents(
        collect(
            Samples(torch.zeros(8, 1, 8, 8) + torch.arange(8).reshape(8, 1, 1, 1) / 8),
            checkpoints,
            folder / "reference.gradstore",
            events=EventSpec(events="planned", timesteps=2),
            projector=ProjectorSpec(proj_dim=64),
            shard_samples=2,
            engine="streaming",
        )
    )
    told = {
        kind: trial(kind, folder, checkpoints, expected) for kind in ("full", "read-only", "gone")
    }
    sys.stdout.write("TOLD " + json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
