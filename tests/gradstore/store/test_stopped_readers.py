"""A reader that stood still while its store was changed reads what was, or says that it changed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gradstore import delete, drop_checkpoint, open_store, vacuum
from gradstore.store.reader import Store
from tests.support.written_stores import everything, filled, grown, require_equal

READER = """
import os, signal, sys
import numpy as np
from gradstore.errors import GradstoreError
from gradstore.store.opening import open_store
from tests.support.written_stores import everything

path, at, out = sys.argv[1:]
steps = iter(range(99))

def step():
    if next(steps) == int(at):
        os.kill(os.getpid(), signal.SIGSTOP)

try:
    store = open_store(path)
    step()
    ids = list(store.manifest.ids)
    step()
    store.rows(0)
    step()
    iterated = []
    for _, rows in store.iter_rows(1):
        iterated.append(rows.direction)
        step()
    np.savez(out, ids=ids, iterated=np.concatenate(iterated), **everything(store))
except GradstoreError as error:
    sys.exit(str(error))
"""
STEPS = 7
CHANGES: dict[str, Callable[[Store], Store]] = {
    "append": lambda store: grown(store, ["p", "q"]),
    "delete and vacuum": lambda store: vacuum(delete(store, ["s1", "b"])),
    "append, delete and vacuum": lambda store: vacuum(delete(grown(store, ["p"]), ["s5"])),
    "drop and vacuum": lambda store: vacuum(drop_checkpoint(store, 1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_reader_that_stood_still(change: str, tmp_path: Path) -> None:
    outcomes = set()
    for at in range(STEPS):
        store = grown(filled(tmp_path / f"{at}.gradstore"), ["a", "b"])
        ids, expected = list(store.manifest.ids), everything(store)
        out = tmp_path / f"{at}.npz"
        process = subprocess.Popen(
            [sys.executable, "-c", READER, str(store.path), str(at), str(out)],
            cwd=Path(__file__).parents[3],
            stderr=subprocess.PIPE,
            text=True,
        )
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        CHANGES[change](open_store(store.path))
        process.send_signal(signal.SIGCONT)
        told = process.communicate(timeout=60)[1]
        outcomes.add(process.returncode)
        if process.returncode:
            assert process.returncode == 1
            assert "open it again" in told.lower(), told
            assert "Traceback" not in told
            continue
        with np.load(out) as found:
            assert list(found["ids"]) == ids
            require_equal({name: found[name] for name in expected}, expected)
            np.testing.assert_array_equal(found["iterated"], expected["1/direction"])
    assert outcomes == ({0} if change == "append" else {1})
