"""Options of small collections, and what they wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gradstore.collect import (
    EventSpec,
    ProjectorSpec,
)
from gradstore.store.format.rows import ARRAYS
from gradstore.store.reader import Store

# The rows of the paper: events as training had them, gradients as they are.
PAPER: dict[str, Any] = {"events": "replayed", "metric": "none"}

# Not `auto`: bfloat16 rounds each entry of a gradient, and two runs may round differently.
SMALL: dict[str, Any] = {
    **PAPER,
    "projector": ProjectorSpec(proj_dim=64, precision="float32"),
    "shard_samples": 2,
}


PLAN = EventSpec(events="planned", timesteps=3, draws=2)


def contents(store: Store) -> dict[str, np.ndarray[Any, Any]]:
    return {
        f"{k}/{name}": getattr(store.rows(k), name)
        for k in range(store.checkpoints)
        for name in ARRAYS
    }


def files(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
