"""`scores`, killed at any use of the disk, goes on; what it leaves is found and can be removed."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.harness import forked
from gradstore import open_store
from indexer import ExactEngine
from query import scores, write_scores
from query.leftovers import left_beside
from tests.support.commands import Run
from tests.support.drawn_stores import random_store

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}


def write(folder: Path, at: int, counted: Any) -> None:
    """Write scores; end at the n-th use of the disk."""
    import torch

    torch.set_num_threads(1)
    vars(scores).update(_CHUNK=(2, 8), _MOST_QUERIES=2)
    engine, asked = (
        ExactEngine(folder / "t.gradstore", "retrac"),
        open_store(folder / "q.gradstore"),
    )

    def heard(event: str, given: tuple[Any, ...]) -> None:
        if event in EVENTS and str(folder) in str(given[0]):
            counted.value += 1
            if counted.value == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(heard)
    write_scores(engine, asked, folder / "s.parquet")


def run_apart(folder: Path, at: int) -> tuple[int, int]:
    """Exit status of a process that is killed at its n-th use of the disk, and their number."""
    context = forked.context()
    counted = context.Value("i", 0)
    process = context.Process(target=write, args=(folder, at, counted))
    process.start()
    process.join()
    return process.exitcode or 0, counted.value


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_killed_at_any_use_of_the_disk(tmp_path: Path, run: Run) -> None:
    made = tmp_path / "made"
    random_store(made / "t.gradstore", 20)
    random_store(made / "q.gradstore", 5, seed=1)
    whole = Path(shutil.copytree(made, tmp_path / "whole"))
    status, count = run_apart(whole, 0)
    assert status == 0
    expected = pd.read_parquet(whole / "s.parquet")
    assert names(whole) == {"t.gradstore", "q.gradstore", "s.parquet"}
    # Its last uses are those of a table that is there already.
    for at in {*range(1, count, max(1, count // 12)), *range(count - 15, count + 1)}:
        folder = Path(shutil.copytree(made, tmp_path / "place"))
        assert run_apart(folder, at)[0] == -signal.SIGKILL
        there = (folder / "s.parquet").exists()
        left = names(folder) - names(made) - {"s.parquet"}
        store = open_store(folder / "t.gradstore")
        assert {one.name for one in left_beside(store)} == left, at
        again = Path(shutil.copytree(folder, tmp_path / "again"))
        run("vacuum", folder / "t.gradstore")
        assert names(folder) - {"s.parquet"} == names(made), at
        status = run_apart(again, 0)[0]
        assert (status == 0) != there, at
        pd.testing.assert_frame_equal(pd.read_parquet(again / "s.parquet"), expected)
        left = {one.name for one in left_beside(open_store(again / "t.gradstore"))}
        assert names(again) - left == names(whole), at
        assert there or not left
        shutil.rmtree(folder)
        shutil.rmtree(again)
