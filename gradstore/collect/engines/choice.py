"""Chooses the fastest gradient engine that works for a model and fits in memory."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Final

import torch

from gradstore.arithmetic import WORTH
from gradstore.collect import devices
from gradstore.collect.engines.allocated import peak_bytes
from gradstore.collect.engines.loop import LoopEngine
from gradstore.collect.engines.streaming import StreamingEngine
from gradstore.collect.engines.vmap import VmapEngine
from gradstore.collect.objectives.protocol import Batch
from gradstore.collect.objectives.wrappers import Autocast, precision
from gradstore.errors import ConfigError, EngineError, GradstoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from gradstore.collect.engines.protocol import EngineMaker, GradientEngine
    from gradstore.collect.objectives.protocol import Objective

_log = logging.getLogger("gradstore")

ENGINES: Final[Mapping[str, EngineMaker]] = {
    "streaming": StreamingEngine,
    "vmap": VmapEngine,
    "loop": LoopEngine,
}

# An engine is timed for this many seconds.
_TIMED_SECONDS = 0.3
# Engines are compared on at most this many events.
_TRIED = 8
# Engines sum in different orders and so differ by float32 rounding, a thousand times less than
# this; under autocast to bfloat16, by some hundredths.
TOLERANCE = 1e-3
CAST_TOLERANCE = 0.1


@dataclass(frozen=True)
class EngineChoice:
    """An engine and its measurements.

    Attributes:
        name: its name.
        make: makes the engine.
        fixed: bytes that it holds for any number of events.
        per_event: bytes that it holds for each event.
        events: the fastest number of events at once among those tried.
        seconds: seconds per event; None if it was not timed.
    """

    name: str
    make: EngineMaker
    fixed: int
    per_event: int
    events: int
    seconds: float | None = None

    def nbytes(self, events: int) -> int:
        """Bytes that it holds for this many events at once."""
        return self.fixed + events * self.per_event


def choose(
    wanted: str | EngineMaker,
    model: nn.Module,
    objective: Objective,
    batch: Batch,
    *,
    memory: int,
    timed: bool,
) -> EngineChoice:
    """Choose an engine for a model, and the number of events at once, by trying.

    Each engine is compared with one backward pass per row on two rows; its memory is measured.
    `auto` takes the faster of `streaming` and `vmap` if `timed`, else the first that works and
    whose memory for one event fits; `loop` if neither works.

    Args:
        wanted: `auto`, a name in `ENGINES`, or a custom engine maker.
        model: the model.
        objective: the objective.
        batch: trial rows with one noise each, as many as the maximum at once.
        memory: bytes that an engine may hold.
        timed: whether the work is large enough to time engines.

    Raises:
        EngineError: if the wanted engine cannot differentiate the model.
        ConfigError: if there is no engine with that name.
        GradstoreError: errors of the model and the objective themselves.
    """
    if wanted == "auto":
        found = _candidates(model, objective, batch, memory=memory, all_of_them=timed)
    elif not isinstance(wanted, str):
        name = getattr(wanted, "__name__", "custom")
        found = [_measure(name, wanted, model, objective, batch)]
    elif wanted in ENGINES:
        found = [_measure(wanted, ENGINES[wanted], model, objective, batch)]
    else:
        names = ", ".join(["auto", *ENGINES])
        raise ConfigError(f"there is no engine {wanted!r}; use one of {names}.")
    if not timed:
        return found[0]

    def time(choice: EngineChoice, events: int) -> EngineChoice:
        return _time(choice, model, objective, batch_of(batch, 0, events))

    # All with the same few events, as many as fit for each of them.
    sizes = [_fitting(one, memory, len(batch)) for one in found]
    first = [time(one, min(*sizes, _TRIED)) for one in found] if len(found) > 1 else found
    best = min(first, key=_seconds)
    # More events at once are not always faster: with a large model they overflow the caches. The
    # number doubles until it is clearly slower. With a small model doubling halves the time per
    # event, and one disturbed trial must not hide that.
    most = _fitting(best, memory, len(batch))
    tried = [best if best.seconds is not None else time(best, min(most, _TRIED))]
    while tried[-1].events < most and _seconds(tried[-1]) <= WORTH * min(map(_seconds, tried)):
        tried.append(time(best, min(most, 2 * tried[-1].events)))
    chosen = min(tried, key=_seconds)
    _log.info(
        "engine %s, %s events at once: %s",
        chosen.name,
        chosen.events,
        ", ".join(
            f"{one.name} {1e3 * _seconds(one):.1f} ms an event with {one.events}"
            for one in dict.fromkeys((*first, *tried))
            if one.seconds is not None
        ),
    )
    return chosen


def choose_arithmetic(
    choice: EngineChoice,
    model: nn.Module,
    objective: Objective,
    batch: Batch,
    *,
    error: float,
) -> tuple[EngineChoice, Objective]:
    """Choose between an objective and its `Autocast` version, by trying.

    Autocast is chosen if it is a quarter faster and changes the gradients of the first two rows
    by at most `error`, relative to their length.

    Args:
        choice: the chosen engine and its speed.
        model: the model.
        objective: the objective, in float32.
        batch: as in `choose`.
        error: allowed change of the gradients, relative to their length.

    Returns:
        The engine as measured with the chosen objective, and that objective.
    """
    cast = Autocast(objective)
    try:
        moved = _moved(model, objective, cast, batch_of(batch, 0, 2))
        if not moved <= error:
            _log.info("autocast is not used: it changes gradients by %.1f%%", 100 * moved)
            return choice, objective
        other = _time(choice, model, cast, batch_of(batch, 0, choice.events))
    except GradstoreError as failed:
        _log.info("autocast is not used: %s", failed)
        return choice, objective
    if _seconds(other) * WORTH > _seconds(choice):
        return choice, objective
    _log.info("autocast to bfloat16 is used: it changes gradients by %.1f%%", 100 * moved)
    return other, cast


def _moved(model: nn.Module, objective: Objective, other: Objective, batch: Batch) -> float:
    """Distance between two objectives' gradients, relative to the length of the first."""
    found = []
    for one in (objective, other):
        pieces: list[Tensor] = []

        def keep(start: int, piece: Tensor, pieces: list[Tensor] = pieces) -> None:  # noqa: ARG001
            pieces.append(piece.flatten().clone())

        LoopEngine(model, one)(batch, keep)
        found.append(torch.cat(pieces))
    size = _length(found[0])
    return _length(found[1] - found[0]) / size if size else float("inf")


def _candidates(
    model: nn.Module, objective: Objective, batch: Batch, *, memory: int, all_of_them: bool
) -> list[EngineChoice]:
    """The engines that work; `loop` only if no faster engine works."""
    found: list[EngineChoice] = []
    for name in ("streaming", "vmap"):
        try:
            choice = _measure(name, ENGINES[name], model, objective, batch)
        except EngineError as error:
            _log.info("engine %s is not used: %s", name, error)
            continue
        if choice.nbytes(1) <= memory or not found:
            found.append(choice)
        if not all_of_them and choice.nbytes(1) <= memory:
            return [choice]
    fitting = [one for one in found if one.nbytes(1) <= memory]
    return fitting or found[:1] or [_measure("loop", LoopEngine, model, objective, batch)]


def _fitting(choice: EngineChoice, memory: int, most: int) -> int:
    return max(1, min(most, (memory - choice.fixed) // choice.per_event))


def _seconds(choice: EngineChoice) -> float:
    return float("inf") if choice.seconds is None else choice.seconds


def _measure(
    name: str, make: EngineMaker, model: nn.Module, objective: Objective, batch: Batch
) -> EngineChoice:
    try:
        engine = make(model, objective)
        if make is not LoopEngine:
            oracle = LoopEngine(model, objective)
            require_agreement(name, engine, oracle, batch, tolerance_of(objective))
        held = [
            peak_bytes(partial(engine, batch_of(batch, 0, rows), forget), batch.inputs.device)
            for rows in range(1, min(2, len(batch)) + 1)
        ]
    except GradstoreError:
        raise
    except Exception as error:  # a custom model may raise anything
        reason = " ".join(str(error).split())[:300]
        raise EngineError(
            f"engine {name} cannot differentiate the model: {type(error).__name__}: {reason}. "
            "Check that samples and conditions match the model; --engine loop works for every "
            "model that can be trained."
        ) from error
    per_event = held[-1] - held[0] if len(held) > 1 else held[0]
    return EngineChoice(name, make, max(0, held[0] - per_event), max(1, per_event), len(batch))


def require_agreement(
    name: str, engine: GradientEngine, oracle: GradientEngine, batch: Batch, tolerance: float
) -> None:
    """Raise `EngineError` unless an engine gives the oracle's gradients for the first two rows.

    Both rows are in one batch, so that an engine that confuses rows is detected. The error of each
    piece is relative to its own length, so that a layer with a small share is not overlooked.
    """
    rows = min(2, len(batch))
    for row in range(rows):
        pieces: dict[int, Tensor] = {}

        def keep(start: int, piece: Tensor, into: dict[int, Tensor] = pieces) -> None:
            into[start] = piece[0].clone()

        oracle(batch_of(batch, row, row + 1), keep)
        expected = torch.cat([pieces[start] for start in sorted(pieces)])
        del pieces
        whole = _length(expected)

        def compare(
            start: int,
            piece: Tensor,
            row: int = row,
            expected: Tensor = expected,
            whole: float = whole,
        ) -> None:
            wanted = expected[start : start + piece.shape[1]]
            error, size = _length(piece[row] - wanted), _length(wanted)
            if not error <= tolerance * (size + whole / 100):
                raise EngineError(
                    f"engine {name} does not match one backward pass per row: from entry {start}, "
                    f"gradients of norm {size:.3g} differ by {error:.3g}. A layer of the model "
                    "mixes or reorders rows; use --engine loop."
                )

        engine(batch_of(batch, 0, rows), compare)


def _length(piece: Tensor) -> float:
    return float(torch.linalg.vector_norm(piece, dtype=devices.exact_dtype(piece.device)))


def tolerance_of(objective: Objective) -> float:
    """Allowed distance of an engine's gradients from the loop's, relative to their length."""
    return TOLERANCE if precision(objective) == "float32" else CAST_TOLERANCE


def _time(
    choice: EngineChoice, model: nn.Module, objective: Objective, batch: Batch
) -> EngineChoice:
    engine = choice.make(model, objective)
    engine(batch_of(batch, 0, 1), forget)  # loads kernels
    # The minimum of a few runs: other load on the machine only adds time.
    quickest, spent = float("inf"), 0.0
    while spent < _TIMED_SECONDS:
        start = perf_counter()
        engine(batch, forget)
        if batch.inputs.is_cuda:
            torch.cuda.synchronize(batch.inputs.device)
        seconds = perf_counter() - start
        quickest, spent = min(quickest, seconds), spent + seconds
    return replace(choice, events=len(batch), seconds=quickest / len(batch))


def forget(start: int, piece: Tensor) -> None:
    """Receive a piece and discard it."""


def batch_of(batch: Batch, start: int, stop: int) -> Batch:
    """Rows `start` to `stop` (exclusive) of a batch."""
    return Batch(
        batch.inputs[start:stop],
        batch.timesteps[start:stop],
        batch.noise[start:stop],
        {name: value[start:stop] for name, value in batch.conditions.items()},
    )
