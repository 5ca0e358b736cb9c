from __future__ import annotations

import json
from typing import TYPE_CHECKING

from benchmarks.faults import PRESETS, run
from gradstore.store import writer

if TYPE_CHECKING:
    from pathlib import Path


def test_a_killed_collect_loses_nothing(tmp_path: Path) -> None:
    targets = run(PRESETS["tiny"], tmp_path)
    assert all(target.met for target in targets)
    table = json.loads((tmp_path / "faults.json").read_text())["figures"]["table"]
    assert [row["where"] for row in table] == ["a random instant", *writer.STEPS]
    for row in table[1:]:
        assert row["killed"] == row["trials"] == row["identical_after"] == 2
    assert "| seal flushed | 2 | 2 |" in (tmp_path / "faults.md").read_text()
    assert (tmp_path / "faults.png").exists()
