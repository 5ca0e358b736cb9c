"""Commands that stood still while their store was changed answer as before, or say that it did."""

from __future__ import annotations

import shutil
from pathlib import Path
from threading import Thread

import pandas as pd
import pytest

import gradstore as gs
from gradstore import open_store
from gradstore.store.verify import verify
from tests.support.drawn_stores import random_store
from tests.support.stopping import commanded, go_on, stands_still

STORE = "{place}/t.gradstore"
ASKED = f"--store {STORE} --queries {{place}}/q.gradstore"
COMMANDS = {
    "query": f"query {ASKED} --k 3 --measures tracin --measures trak --out {{place}}/o",
    "scores": f"scores {ASKED} --out {{place}}/s.parquet",
    "self-influence": f"self-influence --store {STORE} --out {{place}}/i.parquet",
    "index": f"index --store {STORE}",
    "verify": f"verify {STORE}",
    "info": f"info {STORE}",
    "delete": f"delete {STORE} --ids s9",
    "vacuum": f"vacuum {STORE}",
}
RESULTS = {"query": "o/results.parquet", "scores": "s.parquet", "self-influence": "i.parquet"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made") / "place"
    random_store(place / "t.gradstore", 300)
    random_store(place / "q.gradstore", 3, seed=1)
    gs.delete(random_store(place / "plain.gradstore", 310, seed=2), [f"s{n}" for n in range(300)])
    return place


def change(place: Path) -> None:
    """Append, delete, vacuum."""
    store = gs.merge(open_store(place / "t.gradstore"), open_store(place / "plain.gradstore"))
    gs.vacuum(gs.delete(store, ["s1", "s200"]))


def ids(place: Path) -> set[str]:
    return set(open_store(place / "t.gradstore").manifest.ids)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_stood_still(name: str, made: Path, tmp_path: Path) -> None:
    def copy(number: int) -> tuple[Path, list[str]]:
        place = Path(shutil.copytree(made, tmp_path / f"{number}/place"))
        return place, COMMANDS[name].format(place=place).split()

    place, words = copy(0)
    with commanded(words, place, None) as process:
        process.join()
    assert process.exitcode == 0, place.with_suffix(".out").read_text()
    expected = pd.read_parquet(place / RESULTS[name]) if name in RESULTS else None
    whole = int(place.with_suffix(".count").read_text())
    for moment in (1, 2, 3, 4):
        place, words = copy(moment)
        before = ids(place)
        with commanded(words, place, max(1, whole * moment // 5)) as process:
            assert stands_still(process)
            # Where it holds the lock of the root, the others wait for it.
            changing = Thread(target=change, args=(place,))
            changing.start()
            changing.join(5)
            go_on(process)
            changing.join()
            process.join()
        told = place.with_suffix(".out").read_text()
        assert "Traceback" not in told
        deleted = {"s9"} if name == "delete" and process.exitcode == 0 else set()
        if process.exitcode:
            assert process.exitcode == 1, told
            assert "again" in told
            assert "damaged" not in told
            assert "Restore" not in told
        elif expected is not None:
            pd.testing.assert_frame_equal(pd.read_parquet(place / RESULTS[name]), expected)
        after = {*before, *(f"s{n}" for n in range(300, 310))} - {"s1", "s200"} - deleted
        assert ids(place) == after
        assert {report.problem for report in verify(open_store(place / "t.gradstore"))} == {None}
