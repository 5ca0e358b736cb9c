"""Ctrl-C in every command: it says what is kept, loses nothing, and can be run again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gradstore import delete, open_store
from gradstore.store.verify import verify
from tests.support.commands import Run
from tests.support.drawn_stores import random_store
from tests.support.interrupting import interrupted, opened

ASKED = "--store {place}/train.gradstore --queries {place}/asked.gradstore"
STORE = "--store {place}/train.gradstore"
QUICK = {
    "query": f"query {ASKED} --k 3 --measures tracin --measures trak --out {{place}}/o",
    "scores": f"scores {ASKED} --out {{place}}/s.parquet",
    "self-influence": f"self-influence {STORE} --out {{place}}/i.parquet",
    "rollup": f"rollup {ASKED} --out {{place}}/r.parquet",
    "breakdown": f"breakdown {ASKED} --query s0 --sample s1 --out {{place}}/b.jsonl",
    "hubness": f"hubness {STORE} --results {{place}}/results.parquet --out {{place}}/h",
    "index": f"index {STORE}",
    "delete": "delete {place}/train.gradstore --ids s1",
    "vacuum": "vacuum {place}/deleted.gradstore",
    "merge": "merge {place}/train.gradstore {place}/more.gradstore",
    "drop-checkpoint": "drop-checkpoint {place}/train.gradstore 1",
    "info": "info {place}/train.gradstore",
    "verify": "verify {place}/train.gradstore",
}
STORES = ("train", "deleted", "asked", "more")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quick") / "place"
    labels: dict[str, list[object]] = {"label": [str(n % 3) for n in range(20)]}
    random_store(folder / "train.gradstore", 20, metadata=labels)
    delete(random_store(folder / "deleted.gradstore", 20, metadata=labels), ["s3", "s7"])
    random_store(folder / "asked.gradstore", 3, seed=1)
    more = random_store(folder / "plain.gradstore", 25, seed=2)
    delete(more, [f"s{n}" for n in range(20)])
    (folder / "plain.gradstore").rename(folder / "more.gradstore")
    return folder


def words(command: str, place: Path) -> list[str]:
    return command.format(place=place).split()


def interrupt_anywhere(
    command: str, made: Path, scratch: Path, run: Run, *, moments: int = 4
) -> None:
    """Interrupt a command at several moments, each in a copy of a folder; then run it again."""

    def copy() -> Path:
        shutil.rmtree(scratch, ignore_errors=True)
        return Path(shutil.copytree(made, scratch))

    for _ in range(2):  # the first opens what it imports
        place = copy()
        with interrupted(None):
            run(*words(command, place))
    whole, expected = opened(), names(place)
    for moment in range(1, moments + 1):
        place = copy()
        before = revisions(place)
        with interrupted(max(1, whole * moment // (moments + 1))):
            told = run(*words(command, place), status=130)
        assert "What is finished is kept" in told
        changed = revisions(place) != before
        if changed and command.startswith(("delete", "drop", "merge")):
            continue  # it was done when it was interrupted, and cannot be done twice
        run(*words(command, place))
        revisions(place)
        assert names(place) == expected


def names(place: Path) -> set[str]:
    """Files, without those of random names and what `verify` tells and `vacuum` removes."""
    return {
        str(file.relative_to(place))
        for file in place.rglob("*")
        if file.is_file()
        and ".building-" not in str(file)
        and not file.name.endswith(".lock")
        and not {"parts", "deleted", "commits"} & set(file.parts)
    }


def revisions(place: Path) -> dict[str, int]:
    """The revision of each store, all of which must be whole."""
    found = {}
    for name in STORES:
        store = open_store(place / f"{name}.gradstore")
        assert not any(report.problem for report in verify(store))
        found[name] = store.spec.revision
    return found


@pytest.mark.parametrize("name", QUICK)
def test_ctrl_c(name: str, quick: Path, tmp_path: Path, run: Run) -> None:
    made = quick
    if name == "hubness":
        made = Path(shutil.copytree(quick, tmp_path / "made"))
        run(*words(QUICK["query"], made))
        (made / "o/results.parquet").rename(made / "results.parquet")
        shutil.rmtree(made / "o")
    interrupt_anywhere(QUICK[name], made, tmp_path / "place", run)
