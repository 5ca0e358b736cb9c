"""Figures without a display."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure


def canvas(rows: int, columns: int, *, width: float = 9, height: float = 3.4) -> tuple[Figure, Any]:
    """A figure and its axes `[rows, columns]`; `height` is inches per row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def keep(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def bars(axes: Any, names: Sequence[str], figures: Sequence[Mapping[str, Any]]) -> None:
    """Horizontal bars of intervals in their JSON form, the first on top."""
    means = np.array([one["mean"] for one in figures])
    low = means - [one["low"] for one in figures]
    high = np.array([one["high"] for one in figures]) - means
    axes.barh(list(names), means, xerr=np.maximum([low, high], 0), color="#4878a8")
    axes.invert_yaxis()


def band(axes: Any, x: Sequence[float], figures: Sequence[Mapping[str, Any]], label: str) -> None:
    """A line of means with a band, from intervals in their JSON form."""
    (line,) = axes.plot(x, [one["mean"] for one in figures], marker=".", label=label)
    low, high = [one["low"] for one in figures], [one["high"] for one in figures]
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
