"""Ctrl-C in every command: it says what is kept, loses nothing, and can be run again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gradstore import delete
from tests.support.commands import Run, words
from tests.support.drawn_stores import random_store
from tests.support.interrupting import interrupt_anywhere

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


@pytest.mark.parametrize("name", QUICK)
def test_ctrl_c(name: str, quick: Path, tmp_path: Path, run: Run) -> None:
    made = quick
    if name == "hubness":
        made = Path(shutil.copytree(quick, tmp_path / "made"))
        run(*words(QUICK["query"], made))
        (made / "o/results.parquet").rename(made / "results.parquet")
        shutil.rmtree(made / "o")
    interrupt_anywhere(QUICK[name], made, tmp_path / "place", run)
