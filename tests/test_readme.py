"""The README's code blocks run unchanged."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gradstore import open_store
from query import cli
from query.cli import group
from tests.support.worlds import images, save_checkpoint, unet
from tests.support.written_stores import filled

if TYPE_CHECKING:
    from tests.support.worlds import World

HERE = Path(__file__).parent.parent
README = (HERE / "README.md").read_text()
FORMAT, TUTORIAL, HOW_TO, ALL = (
    (HERE / "docs" / f"{name}.md").read_text()
    for name in ("format", "tutorial", "how-to", "all-of-gradstore")
)
# Planned, because appended samples were not in the training run.
PLANNED = ["--proj-dim", "32", "--events", "planned", "--timesteps", "1"]
# Flags that make the README's commands fast enough for a test.
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


def test_the_python_blocks_run(world: World, tmp_path: Path) -> None:
    asking, recording, bare = blocks("python")
    for epoch in (1, 2):
        save_checkpoint(
            tmp_path / "run" / "checkpoints" / f"epoch-{epoch}",
            epoch=epoch,
            learning_rate_sum=epoch,
            ids=[str(row) for row in range(12)],
        )
    names: dict[str, Any] = {"my_dataset": images(12), "my_images": images(2, seed=1)}
    exec(asking, names)  # noqa: S102
    assert len(names["answer"].to_table()) == 2 * 2 * 10
    exec(bare, names)  # noqa: S102
    assert names["directions"].shape == (12, 10, 4096)

    class Pipeline:
        save_pretrained = staticmethod(unet(0).save_pretrained)

    ids = ["0", "1"]
    names = {
        "epochs": 2, "batches": [(ids, world.train[0].tensor[None])], "all_ids": ids,
        "folder": tmp_path / "own", "pipeline": Pipeline,
    }  # fmt: skip
    exec(recording, names)  # noqa: S102
    assert (tmp_path / "own" / "epoch-2" / "events.parquet").exists()


def run(block: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the commands of a block as typed, with the flags of `QUICK`."""
    for line in block.strip().splitlines():
        program, *arguments = line.split()
        extra = QUICK.get(arguments[0], [])
        monkeypatch.setattr(sys, "argv", [program, *arguments, *extra])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code, (line, capsys.readouterr().err)


def test_the_commands_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = blocks("sh")
    assert len(block.strip().splitlines()) == 8
    run(block, monkeypatch, capsys)
    assert Path("answers/report.html").exists()


def test_the_tutorial_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands, python = blocks("sh", TUTORIAL), blocks("python", TUTORIAL)
    assert (len(commands), len(python)) == (4, 1)
    for block in commands:
        run(block, monkeypatch, capsys)
    names: dict[str, Any] = {}
    exec(python[0], names)  # noqa: S102
    assert len(names["frame"]) == 2 * 2 * 5


def test_the_page_from_a_sample_to_a_score_runs() -> None:
    names: dict[str, Any] = {}
    steps = blocks("python", ALL)
    assert len(steps) == 8
    for step in steps:
        exec(step, names)  # noqa: S102


def test_every_command_of_the_pages_exists() -> None:
    """Also checks every flag, because commands in tables are not run."""
    commands = group.cli.commands
    for name, flags in re.findall(r"`gradstore ([a-z][a-z-]*)([^`]*)`", HOW_TO):
        known = {option for one in commands[name].params for option in one.opts}
        assert set(re.findall(r"--[a-z-]+", flags)) <= known, name


def test_the_format_page_is_true(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bare zarr, xarray and pandas read a store."""
    filled(Path("train.gradstore"))
    (block,) = blocks("python", FORMAT)
    names: dict[str, Any] = {}
    exec(block, names)  # noqa: S102
    store = open_store("train.gradstore")
    np.testing.assert_array_equal(names["directions"], store.rows(0).direction)
    assert names["rows"]["columns"].attrs["columns"][0] == "norm"
    np.testing.assert_array_equal(names["rows"]["columns"][:, :, 0], store.rows(0).norm)
    assert list(names["samples"]["id"]) == list(store.manifest.ids)
    assert "xarray.DataArray" in capsys.readouterr().out
