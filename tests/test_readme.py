"""The README's blocks are run as they stand."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from query import cli
from tests.conftest import images, save_checkpoint, unet

if TYPE_CHECKING:
    from tests.conftest import World

README = (Path(__file__).parent.parent / "README.md").read_text()
# What makes the README's commands quick enough to be a test.
QUICK = {
    "train": ["--limit", "24", "--epochs", "2", "--checkpoint-every", "1", "--channels", "8,8"],
    "plan": ["--proj-dim", "32"],
    "collect": ["--proj-dim", "32"],
    "query": ["--limit", "2", "--timesteps", "2", "--draws", "1"],
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_python_blocks_run(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    assert "0 was taught by [" in capsys.readouterr().out
    assert (tmp_path / "report.html").exists()
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
    (block,) = blocks("sh")
    lines = block.strip().splitlines()
    assert len(lines) == 8
    for line in lines:
        program, *arguments = line.split()
        extra = QUICK.get(arguments[0], [])
        monkeypatch.setattr(sys, "argv", [program, *arguments, *extra])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code, (line, capsys.readouterr().err)
    assert Path("answers/report.html").exists()
