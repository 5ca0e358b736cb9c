"""Measures by name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from gradstore.errors import ConfigError
from indexer.measure import QuerySide
from indexer.measures.simple import Clip, Power, ReTrac, TracIn
from indexer.measures.timesteps import Calibrated, Within

if TYPE_CHECKING:
    from collections.abc import Callable

    from indexer.measure import Measure


def _trak(share: float = 1.0) -> Measure:
    from indexer.measures.trak import Trak

    return Trak(share)


def _centred() -> Measure:
    from indexer.measures.centred import Centred

    return Centred()


def _minus(rank: float) -> Measure:
    from indexer.measures.minus import Minus

    return Minus(int(rank) if rank.is_integer() else rank)  # type: ignore[arg-type]


MEASURES: dict[str, Callable[[], Measure]] = {
    "tracin": TracIn,
    "retrac": ReTrac,
    "calibrated": Calibrated,
    "centred": _centred,
    "trak": _trak,
}

PARAMETRIC: dict[str, Callable[[float], Measure]] = {
    "power": Power,
    "clip": Clip,
    "trak": _trak,
    "minus": _minus,
}


def measure_of(measure: Measure | str) -> Measure:
    """Return `measure`, or the measure of that name: `tracin`, `power:0.5`, `clip:0.9`, `trak`, ….

    `package.module.NAME` is a user-defined measure: an object, or a callable that makes one. With
    `:NUMBER` appended, the callable is called with that number.

    Raises:
        ConfigError: if there is no such measure.

    Examples:
        >>> measure_of("power:0.5").name, measure_of("retrac@0-499").name
        ('power:0.5', 'retrac@0-499')
    """
    if not isinstance(measure, str):
        return measure
    if "@" in measure:
        name, _, given = measure.partition("@")
        low, dash, high = given.partition("-")
        if not (dash and low.isdecimal() and high.isdecimal() and len(given) < 20):
            raise ConfigError(f"{measure!r}: {given!r} is no range of timesteps; use FIRST-LAST")
        return Within(measure_of(name), int(low), int(high))
    name, colon, parameter = measure.partition(":")
    if "." in name:
        return _imported(measure)
    if name in MEASURES and not colon:
        return MEASURES[name]()
    try:
        return PARAMETRIC[name](float(parameter))
    except (KeyError, ValueError):
        known = [*MEASURES, *(f"{one}:NUMBER" for one in PARAMETRIC)]
        raise ConfigError(
            f"there is no measure {measure!r}; use {', '.join(known)}, or your own as "
            "package.module.NAME: an object with `name`, `identity`, `fitted` and `weights`."
        ) from None


def indexed(measure: Measure | str) -> Measure:
    """The measure of the training features; a preconditioned measure changes only the queries.

    Examples:
        >>> indexed("trak").name, indexed("retrac").name
        ('tracin', 'retrac')
    """
    given = measure_of(measure)
    return given.indexed if isinstance(given, QuerySide) else given


def _imported(name: str) -> Measure:
    """Import a user-defined measure."""
    path, colon, parameter = name.partition(":")
    module, _, attribute = path.rpartition(".")
    try:
        made = getattr(import_module(module), attribute)
        if colon or isinstance(made, type):
            made = made(float(parameter)) if colon else made()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"measure {name!r} cannot be made: {error}. Its module must be installed or on "
            "PYTHONPATH, and NAME a measure or a callable that makes one, of NUMBER if given."
        ) from error
    lacking = [one for one in ("identity", "fitted", "weights") if not hasattr(made, one)]
    if lacking or getattr(made, "name", None) != name:
        raise ConfigError(
            f"{name!r} is no measure: "
            + (f"it has no {lacking[0]!r}" if lacking else f"its name is not {name!r}")
            + ". See indexer.Measure for the protocol."
        )
    return cast("Measure", made)
