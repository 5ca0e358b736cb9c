"""The output of `--help`, and the effect of `--quiet`."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

import gradstore as gs
from gradstore.collect import Samples
from gradstore.progress import Bar, quietly, track
from tests.support.commands import Run
from tests.support.worlds import World, images


def test_flags_are_grouped_and_required_ones_marked(run: Run) -> None:
    told = run("collect", "--help")
    headings = re.findall(r"^(\w+):$", told, re.M)
    assert headings[0] == "Settings"
    assert headings[-2:] == ["Advanced", "Options"]
    assert {"Dataset", "Event", "Gradient", "Projector"} < set(headings)
    sections = dict(zip(headings, re.split(r"^\w+:$", told, flags=re.M)[1:], strict=True))
    assert "--block-size" in sections["Advanced"]
    assert "--proj-dim" in sections["Projector"]
    assert re.search(r"--store TEXT[^-]*\[required\]", sections["Settings"], re.S)
    assert "[required]" not in sections["Advanced"]


def shows() -> bool:
    bar = Bar(range(1), desc="counting")
    shown = not bar.disable
    bar.close()
    return shown


def test_bars_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shows()
    with quietly():
        assert not shows()
        assert list(track(range(3), "counting", "numbers")) == [0, 1, 2]
        with quietly(False):  # the outer context is already quiet
            assert not shows()
    with quietly(False):
        assert shows()
    monkeypatch.setenv("GRADSTORE_PROGRESS", "0")
    assert not shows()


def test_collecting_can_be_quiet(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gradstore.progress._DELAY", 0.0)
    caplog.set_level(logging.INFO, "gradstore")
    for name, quiet in (("loud", False), ("quiet", True)):
        gs.collect(
            world.train, world.checkpoints, tmp_path / f"{name}.gradstore",
            projector="sjlt", quiet=quiet,
        )  # fmt: skip
        assert ("collecting" in capsys.readouterr().err) is not quiet
        assert bool(caplog.records) is not quiet
        caplog.clear()
    more = Samples(images(2, seed=9), ids=["more-1", "more-2"])
    store = gs.collect(
        world.train, world.checkpoints, tmp_path / "planned.gradstore",
        projector="sjlt", events="planned", quiet=True,
    )  # fmt: skip
    store.append(more, quiet=True)
    assert "collecting" not in capsys.readouterr().err


def test_a_quiet_command_prints_its_result_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADSTORE_PROGRESS", "1")  # restored afterwards
    out = tmp_path / "run"
    told = run(
        "--quiet", "train", "--dataset", "digits", "--limit", "16", "--epochs", "1",
        "--checkpoint-every", "1", "--channels", "8,8", "--out", out,
    )  # fmt: skip
    assert "1 checkpoints in" in told
