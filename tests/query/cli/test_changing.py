"""Changing a store by commands, and querying it again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest

from gradstore.store.opening import open_store
from gradstore.store.writer import unseal
from tests.support.commands import Run
from tests.support.worlds import World, images, save_checkpoint


def flags(name: str, values: Iterable[object]) -> list[object]:
    return [word for value in values for word in (name, value)]


@pytest.fixture
def store(run: Run, world: World, image_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "s.gradstore"
    run(
        "collect", "--dataset", image_folder, "--store", path, "--proj-dim", 32,
        *flags("--checkpoints", world.checkpoints), "--metric", "none",
        "--timesteps", 2, "--loss", "l1", "--shard-samples", 2,
    )  # fmt: skip
    run("index", "--store", path)
    return path


def ask(run: Run, store: Path, out: Path, status: int = 0) -> str:
    return run(
        "query", "--store", store, "--dataset", "digits", "--limit", 1, "--size", 8, "--k", 3,
        "--timesteps", 1, "--draws", 1, "--out", out, status=status,
    )  # fmt: skip


def test_a_sample_that_must_go_is_gone(run: Run, store: Path, tmp_path: Path) -> None:
    told = run("delete", store, "--ids", "cat/1.png")
    assert "1 deleted, 5 samples left" in told
    assert "deleted      1, hidden from every reader" in run("info", store)
    assert "Update the index: gradstore index" in ask(run, store, tmp_path / "early", status=1)
    run("index", "--store", store)
    ask(run, store, tmp_path / "late")
    found = pd.read_parquet(tmp_path / "late" / "results.parquet")
    assert "cat/1.png" not in set(found["sample_id"])
    assert "MB freed" in run("vacuum", store)
    ask(run, store, tmp_path / "later")  # same samples: the index stays valid
    assert "deleted      0" in run("info", store)
    assert "every shard is as it was sealed" in run("verify", store)


def test_ids_from_a_file(run: Run, store: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("cat/1.png\ndog/0.png\n")
    assert "2 deleted" in run("delete", store, "--ids-file", tmp_path / "ids.txt")
    assert "Give --ids or --ids-file" in run("delete", store, status=1)
    assert "holds no sample 'cat/1.png'" in run("delete", store, "--ids", "cat/1.png", status=1)


def test_growing(run: Run, store: Path, tmp_path: Path, world: World) -> None:
    more = tmp_path / "more" / "bird"
    more.mkdir(parents=True)
    for number, image in enumerate(images(3, seed=4)):
        image.save(more / f"{number}.png")
    assert "6 samples, now 9" in run("append", "--store", store, "--dataset", more.parent)
    third = save_checkpoint(tmp_path / "epoch-03", epoch=3, learning_rate_sum=0.9)
    assert "3 checkpoints, weights 0.1, 0.3, 0.5" in run("add-checkpoint", store, third)
    assert "2 checkpoints, weights 0.1, 0.8" in run("drop-checkpoint", store, 1)
    assert "no 1" in run("drop-checkpoint", store, 1, status=1)
    run("index", "--store", store, "--measures", "tracin", status=1)  # other checkpoints
    for old in tmp_path.glob("*.index"):
        old.rename(old.with_suffix(".old"))
    run("index", "--store", store)
    ask(run, store, tmp_path / "answers")
    page = (tmp_path / "answers" / "report.html").read_text()
    assert "bird/" in page
    told = json.loads(run("info", store, "--json"))
    assert [one["number"] for one in told["checkpoints"]] == [0, 2]
    assert [one["samples"] for one in told["parts"]] == [6, 3]
    assert all(one["nbytes"] > 0 for one in told["parts"] + told["checkpoints"])


def test_merging(run: Run, store: Path, tmp_path: Path, world: World) -> None:
    more = tmp_path / "more"
    more.mkdir()
    for number, image in enumerate(images(2, seed=4)):
        image.save(more / f"x{number}.png")
    other = tmp_path / "o.gradstore"
    run(
        "collect", "--dataset", more, "--store", other, "--proj-dim", 32,
        *flags("--checkpoints", world.checkpoints), "--metric", "none",
        "--timesteps", 2, "--loss", "l1",
    )  # fmt: skip
    assert "6 samples, now 8" in run("merge", store, other)
    assert "holds sample 'x0.png' already" in run("merge", store, other, status=1)


def test_a_store_that_is_not_finished_can_be_asked(
    run: Run,
    store: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    unseal(open_store(store).parts[0], 1, 2)
    for index in tmp_path.glob("*.index"):
        index.rename(index.with_suffix(".old"))
    assert "lacks 1 of 3 shards" in run("index", "--store", store, status=1)
    run("index", "--store", store, "--skip-unsealed")
    assert "2 of 6 samples are skipped" in caplog.text
    run(
        "query", "--store", store, "--dataset", "digits", "--limit", 1, "--size", 8, "--k", 4,
        "--timesteps", 1, "--draws", 1, "--out", tmp_path / "a", "--skip-unsealed",
    )  # fmt: skip
    assert len(set(pd.read_parquet(tmp_path / "a" / "results.parquet")["sample_id"])) == 4
