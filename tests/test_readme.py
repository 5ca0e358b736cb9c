"""The README's blocks are run as they stand."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gradstore import open_store
from query import cli
from tests.conftest import images, save_checkpoint, unet
from tests.gradstore.store.test_store import filled

if TYPE_CHECKING:
    from tests.conftest import World

HERE = Path(__file__).parent.parent
README, FORMAT = (HERE / "README.md").read_text(), (HERE / "docs" / "format.md").read_text()
# Planned, for what is appended was not part of the training run.
PLANNED = ["--proj-dim", "32", "--events", "planned", "--timesteps", "1"]
# What makes the README's commands quick enough to be a test.
QUICK = {
    "train": ["--limit", "24", "--epochs", "2", "--checkpoint-every", "1", "--channels", "8,8"],
    "plan": PLANNED,
    "collect": PLANNED,
    "query": ["--limit", "2", "--timesteps", "2", "--draws", "1", "--k", "3"],
}


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_python_blocks_run(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asking, searching, recording, bare = blocks("python")
    for epoch in (1, 2):
        save_checkpoint(
            tmp_path / "run" / "checkpoints" / f"epoch-{epoch}",
            epoch=epoch,
            learning_rate_sum=epoch,
            ids=[str(row) for row in range(12)],
        )
    names: dict[str, Any] = {"my_dataset": images(12), "my_images": images(2, seed=1)}
    exec(asking, names)  # noqa: S102
    assert "0 was taught by [" in capsys.readouterr().out
    assert (tmp_path / "report.html").exists()
    exec(searching, names)  # noqa: S102
    assert len(names["strange"]) == 10
    assert names["pairs"].sum() == pytest.approx(names["answer"].proponents.scores[0, 0], rel=1e-3)
    exec(bare, names)  # noqa: S102
    assert names["directions"].shape == (12, 1, 4096)

    class Pipeline:
        save_pretrained = staticmethod(unet(0).save_pretrained)

    ids = ["0", "1"]
    names = {
        "epochs": 2, "batches": [(ids, world.train[0].tensor[None])], "all_ids": ids,
        "folder": tmp_path / "own", "pipeline": Pipeline,
    }  # fmt: skip
    exec(recording, names)  # noqa: S102
    assert (tmp_path / "own" / "epoch-2" / "events.parquet").exists()


def test_the_commands_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line for block in blocks("sh") for line in block.strip().splitlines()]
    assert len(lines) == 17
    Path("more").mkdir()
    for number, image in enumerate(images(3)):
        image.save(f"more/{number}.png")
    for shown in lines:
        line = shown.replace("dog/17.png,dog/18.png", "1.png,2.png")
        program, *arguments = line.split()
        extra = QUICK.get(arguments[0], [])
        monkeypatch.setattr(sys, "argv", [program, *arguments, *extra])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code, (line, capsys.readouterr().err)
    assert Path("answers/report.html").exists()
    assert Path("again/report.html").exists()


def test_the_format_page_is_true(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bare zarr, xarray and pandas read a store."""
    filled(Path("train.gradstore"))
    (block,) = blocks("python", FORMAT)
    names: dict[str, Any] = {}
    exec(block, names)  # noqa: S102
    store = open_store("train.gradstore")
    np.testing.assert_array_equal(names["directions"], store.rows(0).direction)
    np.testing.assert_array_equal(names["rows"]["norm"], store.rows(0).norm)
    assert list(names["samples"]["id"]) == list(store.manifest.ids)
    assert "xarray.DataArray" in capsys.readouterr().out
