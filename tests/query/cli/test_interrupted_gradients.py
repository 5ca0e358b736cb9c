"""Ctrl-C in the commands that compute gradients, and in those that only look."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import pytest

from gradstore import CollectConfig, open_store
from gradstore.collect import collect_config
from gradstore.store.verify import ShardReport, verify
from tests.support.commands import TRAIN, Run, words
from tests.support.interrupting import interrupt_anywhere
from tests.support.worlds import images

PLANNED = "--events planned --timesteps 2 --proj-dim 64"
RUN = "{place}/run/collect.yaml --checkpoints {place}/run/checkpoints"
STORE = "--store {place}/s.gradstore"
COMMANDS = {
    "train": " ".join([*TRAIN, "--out {place}/new"]),
    "collect": f"collect {RUN} {PLANNED} --store {{place}}/n.gradstore",
    "append": f"append {STORE} --dataset {{place}}/images --checkpoints {{place}}/run/checkpoints",
    "add-checkpoint": "add-checkpoint {place}/one.gradstore {place}/run/checkpoints/epoch-0002",
    "plan": f"plan {RUN} {PLANNED} --store {{place}}/n.gradstore",
    "query": f"query {STORE} --dataset digits --limit 3 --timesteps 2 --draws 1 --k 3 "
    "--checkpoints {place}/run/checkpoints --out {place}/answers",
    "evaluate": "evaluate --stores {place}/s.gradstore --dataset digits --limit 3 --timesteps 2 "
    "--draws 1 --copies 2 --checkpoints {place}/run/checkpoints --out {place}/evaluation",
    "doctor": "doctor",
}
DEMO = (
    "demo --out {place}/demo --epochs 8 --digits 12 --heldout 2 --generated 1 --proj-dim 64 --k 2"
)
TOLD = {
    "train": "To train again, remove",
    "collect": "Sealed shards are kept",
    "plan": "Nothing was written",
    "doctor": "Nothing was written",
}


@pytest.fixture(scope="module")
def made(road: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made") / "place"
    shutil.copytree(road / "run", place / "run")
    for index in place.glob("run/*.index"):
        shutil.rmtree(index)
    shutil.rmtree(place / "run/train.gradstore")
    folders = sorted((place / "run/checkpoints").iterdir())
    (place / "images").mkdir()
    for number, image in enumerate(images(3)):
        image.save(place / f"images/{number}.png")
    settings = CollectConfig(
        dataset="digits", limit=40, events="planned", timesteps=2, proj_dim=64, store="",
        checkpoints=[str(one) for one in folders],
    )  # fmt: skip
    for name, chosen in (("s", folders), ("one", folders[:1])):
        collect_config(
            settings.model_copy(
                update={
                    "store": str(place / f"{name}.gradstore"),
                    "checkpoints": [str(one) for one in chosen],
                }
            )
        )
    return place


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c(name: str, made: Path, tmp_path: Path, run: Run) -> None:
    def again(place: Path) -> None:
        if name == "train":  # as it says
            shutil.rmtree(place / "new", ignore_errors=True)

    interrupt_anywhere(
        COMMANDS[name],
        made,
        tmp_path / "place",
        run,
        moments=2,
        told=TOLD.get(name, "is kept"),
        again=again,
    )


@pytest.mark.parametrize(
    ("command", "mark"),
    [
        (f"{COMMANDS['collect']} --batch-size 1", "n.gradstore/seals/0/*.json"),
        (
            DEMO,
            "demo/run/checkpoints/epoch-0002",
        ),
    ],
    ids=["collect", "demo"],
)
def test_ctrl_c_to_a_process_at_work(
    command: str, mark: str, made: Path, tmp_path: Path, run: Run
) -> None:
    place = Path(shutil.copytree(made, tmp_path / "place"))
    process = subprocess.Popen(
        [sys.executable, "-c", "from query.cli import main; main()", *words(command, place)],
        cwd=Path(__file__).parents[3],
        stderr=subprocess.PIPE,
        text=True,
    )
    until = monotonic() + 120
    while not list(place.glob(mark)):
        assert process.poll() is None
        assert monotonic() < until
        sleep(0.01)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130, told
    assert "kept: run the same command again to go on" in told
    assert "Traceback" not in told
    assert any(report.sealed for report in reports(place)) == (command[0] == "c")
    run(*words(command, place))
    assert not any(report.problem for report in reports(place))


def reports(place: Path) -> list[ShardReport]:
    found = [*place.glob("n.gradstore"), *place.glob("demo/*.gradstore")]
    return [report for path in found for report in verify(open_store(path))]
