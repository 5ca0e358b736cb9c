from __future__ import annotations

import json
from typing import TYPE_CHECKING

from benchmarks.serve import PRESETS, run

if TYPE_CHECKING:
    from pathlib import Path


def test_it_measures_one_client_and_many(tmp_path: Path) -> None:
    targets = run(PRESETS["tiny"], tmp_path)
    assert targets[-1].met  # none failed
    figures = json.loads((tmp_path / "serve.json").read_text())["figures"]
    alone = figures["alone"]
    assert figures["p95"]["new"] >= alone["new"]["low"] > alone["ahead"]["low"] > 0
    assert figures["memory"]["peak"] >= figures["memory"]["open"] > 10**7
    assert (tmp_path / "serve.png").stat().st_size > 0
    assert "new question, by 64 at once" in (tmp_path / "serve.md").read_text()
