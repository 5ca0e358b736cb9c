from __future__ import annotations

import json
from typing import TYPE_CHECKING

from benchmarks.faults import PRESETS, run
from gradstore.store import writer

if TYPE_CHECKING:
    from pathlib import Path


def test_killed_commands_lose_nothing(tmp_path: Path) -> None:
    targets = run(PRESETS["tiny"], tmp_path)
    assert all(target.met for target in targets)
    figures = json.loads((tmp_path / "faults.json").read_text())["figures"]
    table = {row["where"]: row for row in figures["table"]}
    for command in ("collect", "index", "index, replacing one", "scores", "query"):
        row = table[f"{command}: a random instant"]
        assert row["killed"] == 1
        assert row["trials"] == row["equal"] >= 1
    for step in writer.STEPS:
        row = table[f"collect: {step}"]
        assert row["killed"] == row["trials"] == row["equal"] == 2
    assert figures["kills"] == 5 + 2 * len(writer.STEPS)
    assert "| collect: seal flushed | 2 |" in (tmp_path / "faults.md").read_text()
    assert (tmp_path / "faults.png").exists()
