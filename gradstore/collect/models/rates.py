"""Learning rates from the files that a training script saves with its checkpoints.

accelerate, and with it diffusers' scripts, saves `optimizer.bin` and `scheduler.bin` in each
`checkpoint-N`; the Trainer of transformers `optimizer.pt`, `scheduler.pt` and `trainer_state.json`.
Nothing else is unpickled than tensors and plain values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch

from gradstore.collect.models.folders import MODELS, read_config
from gradstore.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True)
class ScriptRates:
    """Sums of the learning rate over training steps.

    Attributes:
        sums: the sum up to each checkpoint; None if the files do not tell it.
        told: where the rates are from, or why they are not known.
    """

    sums: list[float] | None
    told: str


@dataclass(frozen=True)
class _Point:
    """The learning rate after some steps; `base` is that of the optimiser, without a schedule."""

    step: int
    rate: float
    base: float


class _UnclearError(Exception):
    """The files of a training run do not tell its learning rates."""


def script_rates(folders: Sequence[Path]) -> ScriptRates:
    """Sums of the learning rate up to each checkpoint of a series, by its script's own files.

    Between two checkpoints the rate is interpolated. Before the first it is the optimiser's own,
    or rises from 0 if it still rises afterwards: a warm-up that ends before the first checkpoint is
    not seen, unless `trainer_state.json` logs it.

    Args:
        folders: the checkpoints, in training order.
    """
    try:
        points, files = zip(*(_point(folder) for folder in folders), strict=True)
        if len({_run(folder).parent for folder in folders}) > 1:
            raise _UnclearError("they are of several runs")
        if any(later.step <= one.step for one, later in pairwise(points)):
            raise _UnclearError("their numbers of steps do not rise")
        logged = _logged(_run(folders[-1]), points[-1])
        curve = logged or list(points)
        if len(curve) == 1 and curve[0].rate != curve[0].base:
            raise _UnclearError(
                f"{files[0]} has rate {curve[0].rate:g} of {curve[0].base:g}, and one checkpoint "
                "does not tell the schedule between"
            )
        sums = [_sum(curve, point.step) for point in points]
        if any(later <= one for one, later in pairwise([0.0, *sums])):
            raise _UnclearError("between two of them it was 0")
    except _UnclearError as error:
        return ScriptRates(None, str(error))
    rates = ", ".join(f"{point.rate:g} at {point.step}" for point in points[:5])
    source = "trainer_state.json" if logged else files[0]
    more = ", …" if len(points) > 5 else ""
    return ScriptRates(sums, f"learning rate × steps, by {source}: {rates}{more}")


def _run(folder: Path) -> Path:
    """The `checkpoint-N` of a checkpoint, which may be its `checkpoint-N/unet`."""
    return folder.parent if folder.name in MODELS else folder


def _point(folder: Path) -> tuple[_Point, str]:
    """The rate at a checkpoint, and the name of the file that tells it."""
    run = _run(folder)
    names = ("optimizer.bin", "optimizer.pt", "scheduler.bin", "scheduler.pt")
    file = next((run / name for name in names if (run / name).is_file()), None)
    if file is None:
        raise _UnclearError(f"{folder} records no learning rate")
    named = re.fullmatch(r"checkpoint-(\d{1,12})", run.name)
    if named is None:
        raise _UnclearError(f"the name of {folder} tells no number of steps")
    rates = _rates(file)
    if len(rates) != 1:
        raise _UnclearError(f"{file} has several learning rates")
    return _Point(int(named[1]), *rates.pop()), file.name


def _rates(file: Path) -> set[tuple[float, float]]:
    """The rates of an optimiser's groups of parameters, or a scheduler's, now and at base."""
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        if "param_groups" in found:
            groups = found["param_groups"]
            if any("d" in group for group in groups):
                raise _UnclearError(f"{file} is of an optimizer that finds its own learning rate")
            pairs = [(group["lr"], group.get("initial_lr", group["lr"])) for group in groups]
        else:
            pairs = list(zip(found["_last_lr"], found["base_lrs"], strict=True))
        rates = {(float(rate), float(base)) for rate, base in pairs}
    except _UnclearError:
        raise
    except Exception as error:  # torch.load may raise anything on a foreign file
        reason = " ".join((str(error) or repr(error)).split())[:200]
        raise _UnclearError(f"{file} tells no learning rate: {reason}") from error
    if not all(isfinite(one) and one >= 0 for pair in rates for one in pair):
        raise _UnclearError(f"{file} tells a learning rate that is no number from 0 on")
    return rates


def _logged(run: Path, last: _Point) -> list[_Point]:
    """The rates that the Trainer of transformers logged up to a checkpoint; none without it."""
    if not (run / "trainer_state.json").is_file():
        return []
    try:
        history: Any = read_config(run / "trainer_state.json").get("log_history")
    except CheckpointError as error:
        raise _UnclearError(str(error)) from error
    found: dict[int, _Point] = {}
    for one in history if isinstance(history, list) else []:
        entry = one if isinstance(one, dict) else {}
        step, rate = entry.get("step"), entry.get("learning_rate")
        if not isinstance(step, int) or not isinstance(rate, int | float):
            continue
        if 0 < step <= last.step and isfinite(rate) and rate >= 0:
            found[step] = _Point(step, float(rate), last.base)
    points = [found[step] for step in sorted(found)]
    return [*points, last] if points and points[-1].step < last.step else points


def _sum(curve: Sequence[_Point], steps: int) -> float:
    """The sum of a curve's rates over the first steps."""
    first = curve[0]
    rises = len(curve) > 1 and first.rate < min(first.base, curve[1].rate)
    start = _Point(0, 0.0 if rises else max(first.base, first.rate), first.base)
    total = 0.0
    for one, later in pairwise([start, *curve]):
        part = min(steps, later.step) - one.step
        if part <= 0:
            break
        end = one.rate + (later.rate - one.rate) * part / (later.step - one.step)
        total += part * (one.rate + end) / 2
    return total
