from __future__ import annotations

import json
from typing import TYPE_CHECKING

from benchmarks.store import PRESETS, run

if TYPE_CHECKING:
    from pathlib import Path


def test_the_benchmark_measures_everything_it_promises(tmp_path: Path) -> None:
    targets = run(PRESETS["tiny"], tmp_path)
    assert len(targets) == 6
    figures = json.loads((tmp_path / "store.json").read_text())["figures"]
    assert figures["bytes_per_row"]["int8"] < figures["bytes_per_row"]["float16"]
    assert figures["scores"]["float16"]["tracin"]["spearman_mean"] > 0.99
    assert all(one["median"] > 0 for one in figures["gb_per_second"]["read"].values())
    assert figures["requests"]["open"] == {"GET": 2, "all": 2}
    assert figures["requests"]["each query after it"] == {"HEAD": 1, "GET": 2, "all": 3}
    page = (tmp_path / "store.md").read_text()
    assert "| int8 |" in page
    assert (tmp_path / "store.png").exists()
