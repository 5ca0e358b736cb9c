"""Examples in docstrings are correct."""

from __future__ import annotations

import doctest
import importlib
import shutil
from pathlib import Path

import pytest

import gradstore as gs
from tests.support.worlds import images, save_checkpoint

HERE = Path(__file__).parent.parent
MODULES = [
    ".".join(file.relative_to(HERE).with_suffix("").parts).removesuffix(".__init__")
    for package in ("gradstore", "indexer", "query")
    for file in sorted((HERE / package).rglob("*.py"))
    if ">>>" in file.read_text()
]


@pytest.fixture(scope="session")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: images, the checkpoints of a run, and stores collected from them."""
    root = tmp_path_factory.mktemp("user")

    def save_images(folder: str, start: int, count: int, seed: int) -> list[str]:
        ids = []
        for number, image in enumerate(images(count, seed), start):
            ids.append(f"{'dog' if number % 2 else 'cat'}/{number}.png")
            file = root / folder / ids[-1]
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
        return ids

    seen = save_images("my_images", 0, 7, seed=0) + save_images("more_images", 7, 2, seed=1)
    save_images("asked_images", 0, 3, seed=2)
    checkpoints = root / "run" / "checkpoints"
    folders = [checkpoints / "epoch-01", checkpoints / "epoch-02", root / "run/later/epoch-03"]
    for epoch, folder in enumerate(folders, 1):
        save_checkpoint(folder, epoch=epoch, learning_rate_sum=epoch / 8, ids=seen)

    train, projector = root / "train.gradstore", gs.ProjectorSpec(projector="sjlt", proj_dim=64)
    gs.collect(root / "my_images", checkpoints, train, projector=projector, shard_samples=8)
    more = root / "more.gradstore"
    metric = gs.open_store(train)  # rows of one fit can be merged
    gs.collect(root / "more_images", checkpoints, more, projector=projector, metric=metric)
    gs.collect_queries(train, root / "asked_images", root / "asked.gradstore")
    damaged = shutil.copytree(train, root / "damaged.gradstore")
    next((damaged / "checkpoints" / "0" / "columns").glob("c.*")).write_bytes(b"damaged")
    return root


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(
    name: str, user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for number, test in enumerate(doctest.DocTestFinder().find(importlib.import_module(name))):
        if test.examples:  # each in its own copy, because some change a store
            monkeypatch.chdir(shutil.copytree(user, tmp_path / str(number)))
            runner.run(test)
    found = runner.summarize()
    assert found.attempted > 0
    assert found.failed == 0


def test_there_are_examples() -> None:
    assert len(MODULES) >= 48
