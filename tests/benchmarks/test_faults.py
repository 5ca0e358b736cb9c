from __future__ import annotations

import json
from typing import TYPE_CHECKING

from benchmarks.faults import PRESETS, run
from benchmarks.worlds.setting import Folders
from benchmarks.worlds.trials import Trial, Trials
from gradstore.store import writer

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = ("collect", "index", "index, replacing one", "scores", "query", "serve")


def test_killed_and_stopped_commands_lose_nothing(tmp_path: Path) -> None:
    targets = run(PRESETS["tiny"], tmp_path, Folders(tmp_path / "cache", None))
    assert all(target.met for target in targets), targets
    content = json.loads((tmp_path / "faults.json").read_text())
    table = {row["where"]: row for row in content["figures"]["table"]}
    for command in COMMANDS:
        for how in ("killed", "stopped"):
            row = table[f"{command}: {how} at a random instant"]
            assert row["hit"] >= 1
            assert row["trials"] == row["equal"] >= 1
    for step in writer.STEPS:
        row = table[f"collect: {step}"]
        assert row["hit"] == row["trials"] == row["equal"] == 2
    assert content["figures"]["kills"] >= len(COMMANDS) + 2 * len(writer.STEPS)
    assert content["figures"]["stops"] == len(COMMANDS)
    assert "| collect: seal flushed | " in (tmp_path / "faults.md").read_text()
    assert (tmp_path / "faults.png").exists()


def test_trials_are_kept(tmp_path: Path) -> None:
    trials = Trials(tmp_path, "index, replacing one: killed")
    for number in range(3):
        trials.add(Trial(number, 0, finished=number, damaged=0, equal=True, seconds=1.5))
    (file,) = tmp_path.iterdir()
    with file.open("a") as opened:
        opened.write('\n{"hit": tr')  # cut off
    again = Trials(tmp_path, "index, replacing one: killed")
    assert again.all == trials.all
    assert again.hit == 3
    again.add(trials.all[0])
    assert Trials(tmp_path, "index, replacing one: killed").all == again.all
    assert Trials(tmp_path, "index: killed").all == []
