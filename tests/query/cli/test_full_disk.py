"""Where nothing more can be written, a command names what it could not write and leaves nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gradstore import delete, open_store
from gradstore.store.verify import verify
from tests.support.commands import TRAIN, Run, words
from tests.support.disks import full
from tests.support.drawn_stores import random_store


@pytest.fixture
def place(tmp_path: Path, run: Run) -> Path:
    place = tmp_path / "place"
    random_store(place / "train.gradstore", 20, metadata={"label": [str(n % 3) for n in range(20)]})
    random_store(place / "asked.gradstore", 3, seed=1)
    more = random_store(place / "more.gradstore", 23, seed=2)
    delete(more, [f"s{n}" for n in range(20)])
    delete(random_store(place / "deleted.gradstore", 20), ["s3"])
    return place


def everything(place: Path) -> set[str]:
    return {str(file.relative_to(place)) for file in place.rglob("*") if file.is_file()}


COMMANDS = {
    "query {asked} --k 3 --out {place}/o": "place/o",
    "scores {asked} --out {place}/s.zarr": "s.zarr",
    "scores {asked} --out {place}/s.parquet": "s.parquet",
    "self-influence {store} --out {place}/i.parquet": "i.parquet",
    "self-influence {store} --out {place}/i.jsonl": "i.jsonl",
    "rollup {asked} --out {place}/r.parquet": "r.parquet",
    "breakdown {asked} --query s0 --sample s1 --out {place}/b.jsonl": "b.jsonl",
    "hubness {store} --results {place}/../results.parquet --out {place}/h": "place/.h.writing",
    "index {store}": "train.tracin.index",
    "index {store} --measures trak": "train.trak.kernel",
    "delete {place}/train.gradstore --ids s1": "train.gradstore",
    "drop-checkpoint {place}/train.gradstore 1": "train.gradstore",
    "merge {place}/train.gradstore {place}/more.gradstore": "train.gradstore",
    "vacuum {place}/deleted.gradstore": "deleted.gradstore",
}


def test_a_full_disk(place: Path, run: Run, subtests: pytest.Subtests) -> None:
    asked = f"--store {place}/train.gradstore --queries {place}/asked.gradstore"
    run("query", *asked.split(), "--k", 3, "--out", place / "o")
    (place / "o/results.parquet").rename(place.parent / "results.parquet")
    shutil.rmtree(place / "o")
    before = everything(place)
    for command, name in COMMANDS.items():
        words = command.format(
            asked=asked, store=asked.split(" --queries", maxsplit=1)[0], place=place
        ).split()
        with subtests.test(command):
            with full():
                told = run(*words, status=1)
            assert name in told
            assert "cannot be written" in told or "cannot be changed" in told
            left = everything(place) - before
            assert {one for one in left if not one.endswith(".lock")} == set()
            assert not any(
                report.problem for report in verify(open_store(place / "train.gradstore"))
            )
    run("query", *asked.split(), "--k", 3, "--out", place / "o")
    run(
        "hubness",
        *asked.split()[:2],
        "--results",
        place / "o/results.parquet",
        "--out",
        place / "h",
    )


def test_a_full_disk_where_gradients_are_computed(
    road: Path, image_folder: Path, run: Run, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    """Also, each command goes on when there is space again."""
    place = Path(shutil.copytree(road, tmp_path / "place"))
    settings, store = place / "run/collect.yaml", place / "s.gradstore"
    first, second = sorted((place / "run/checkpoints").glob("epoch-*"))
    planned = ["--events", "planned", "--timesteps", "2", "--proj-dim", "64", "--store"]
    run("collect", settings, *planned, store)
    run("collect", settings, *planned, place / "one.gradstore", "--checkpoints", first)
    run("collect", settings, *planned, place / "damaged.gradstore")
    (place / "damaged.gradstore/checkpoints/0/columns/c.0.0.0").unlink()
    commands: dict[str, tuple[list[object], Path]] = {
        "train": ([*TRAIN, "--out", place / "new"], place / "new"),
        "collect": (["collect", settings, *planned, place / "n.gradstore"], place / "n.gradstore"),
        "append": (["append", "--store", store, "--dataset", image_folder], store),
        "add-checkpoint": (
            ["add-checkpoint", place / "one.gradstore", second, "--eta", "0.1"],
            place / "one.gradstore",
        ),
        "verify": (
            ["verify", place / "damaged.gradstore", "--repair"],
            place / "damaged.gradstore",
        ),
        "query": (
            [
                "query",
                "--store",
                store,
                "--dataset",
                image_folder,
                "--k",
                "3",
                "--out",
                place / "o",
            ],
            place / "o",
        ),
    }
    for name, (command, written) in commands.items():
        with subtests.test(name):
            with full():
                told = run(*command, status=1)
            assert str(written) in told
            assert "cannot be" in told
            if name == "train":
                shutil.rmtree(written)
            # A shard that was to be repaired is not sealed any more.
            run(*(["collect", settings, *planned, written] if name == "verify" else command))
            if (written / "zarr.json").exists():
                assert not any(report.problem for report in verify(open_store(written)))


LONG = {
    "demo": "demo --out {place}/long --epochs 4 --digits 12 --heldout 2 --generated 1 "
    "--proj-dim 64 --k 2",
    "evaluate": "evaluate --stores {place}/s.gradstore --dataset digits --limit 3 --timesteps 2 "
    "--draws 1 --copies 2 --out {place}/long",
    "query": "query --store {place}/s.gradstore --generate 2 --timesteps 2 --draws 1 --k 2 "
    "--out {place}/long",
}


@pytest.mark.parametrize("name", LONG)
def test_a_disk_that_becomes_full_amid_a_long_command(
    name: str, road: Path, run: Run, tmp_path: Path
) -> None:
    """The smaller the largest file that fits, the earlier it fails; the same command goes on."""
    place = Path(shutil.copytree(road, tmp_path / "place"))
    (place / "run/train.gradstore").rename(place / "s.gradstore")
    before = everything(place)
    failures = 0
    for nbytes in (16, 200, 1000, 4000, 16_000, 64_000, 256_000):
        arguments = words(LONG[name], place)
        with full(nbytes):
            try:
                told = run(*arguments, status=1)
            except AssertionError:  # it succeeded
                break
        failures += 1
        assert str(place / "long") in told, (nbytes, told)
        assert "cannot be" in told
        assert before <= everything(place)
        assert not any(report.problem for report in verify(open_store(place / "s.gradstore")))
    assert failures > 2
    run(*words(LONG[name], place))
    left = {one for one in everything(place) - before if ".writing" in one or ".lock" in one}
    assert left == set()
    for path in (place / "long").glob("*.gradstore"):
        assert not any(report.problem for report in verify(open_store(path)))


def test_a_plan_where_its_trial_has_no_space(road: Path, run: Run, tmp_path: Path) -> None:
    command = ["plan", road / "run/collect.yaml", "--proj-dim", 64, "--store", tmp_path / "n"]
    with full():
        told = run(*command, status=1)
    assert f"{tmp_path}/" in told
    assert "cannot be created" in told
    assert list(tmp_path.iterdir()) == []
    run(*command)
    assert list(tmp_path.iterdir()) == []
