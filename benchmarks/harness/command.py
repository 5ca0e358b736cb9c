"""The command line of a benchmark: its preset and output folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.results import RESULTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def parser_of(presets: Mapping[str, Any], description: str | None) -> argparse.ArgumentParser:
    """A parser with `--preset` and `--out`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--preset", choices=presets, default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser


def command(
    presets: Mapping[str, Any], run: Callable[[Any, Path], Any], description: str | None
) -> None:
    """Run a benchmark that needs no images."""
    given = parser_of(presets, description).parse_args()
    run(presets[given.preset], given.out)
