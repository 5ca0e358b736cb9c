"""What the report and the page say about measures and scores: short and true, each in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_RAISED: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

PROVENANCE: Final = (
    "An influence estimate says which training samples a linearised training run responds to. It "
    "is not proof of provenance, copying or ownership."
)
SIDES: Final = (
    "Proponents are the training samples that pushed the model towards the query, opponents those "
    "that pushed against it."
)
CHANCE: Final = (
    "Chance is the share that samples drawn at random would have. Distinct is the share of the "
    "proponents that differ: 1 if no sample is listed twice, near 0 if all queries list the same."
)
ERRORS: Final = (
    "The bar under a score is its 95% interval, by the errors that are known: the projection, the "
    "query's own noises, the training sample's. z is the score in units of the projection's error "
    "between unrelated gradients."
)

NAMES: Final = {
    "tracin": "TracIn",
    "retrac": "ReTrac",
    "power": "Power",
    "clip": "Clip",
    "calibrated": "Calibrated",
    "centred": "Centred cosine",
    "trak": "TRAK's kernel",
    "minus": "Minus",
}
_TEXTS: Final = {
    "tracin": "weights each training gradient by its norm, so large gradients count for more.",
    "retrac": "gives all training gradients the same weight, however large they are.",
    "power": "weights each gradient by its norm to the power of one minus the number: 0 is TracIn, "
    "1 is ReTrac.",
    "clip": "is TracIn with norms cut at a quantile, the number, of their checkpoint.",
    "calibrated": "divides each norm by the mean norm at that timestep, which removes the "
    "timestep's share and keeps the sample's own.",
    "centred": "compares by cosine how query and training sample differ from the mean training "
    "sample. Errors of projection and z are not known for it.",
    "trak": "removes from the query what all training samples share, by the inverse of their "
    "covariance; the number is the damping. Errors of projection and z are not known for it.",
    "minus": "is TracIn without the directions that hold most of all training gradients; the "
    "number says how many. Errors of projection and z are not known for it.",
}


def display_name(measure: str) -> str:
    """A measure's name for people.

    Examples:
        >>> display_name("retrac@0-499"), display_name("power:0.5"), display_name("my.own")
        ('ReTrac, timesteps 0 to 499', 'Power 0.5', 'my.own')
    """
    name, _, within = measure.partition("@")
    base, _, number = name.partition(":")
    shown = f"{NAMES.get(base, base)} {number}".rstrip()
    low, dash, high = within.partition("-")
    return f"{shown}, timesteps {low} to {high}" if dash else shown


def about(measure: str) -> str:
    """One sentence about a measure; empty for a user's own.

    Examples:
        >>> about("retrac").startswith("ReTrac gives all training gradients the same weight")
        True
    """
    base = measure.partition("@")[0].partition(":")[0]
    return f"{NAMES[base]} {_TEXTS[base]}" if base in _TEXTS else ""


def heading(side: str, highest: float) -> str:
    """Title of a list: `opponents` only if some of them pushed against the query.

    Args:
        side: proponent or opponent.
        highest: first score of the list.
    """
    if side == "opponent" and highest >= 0:
        return "least influential (no opponents)"
    return f"{side}s"


@dataclass(frozen=True)
class Scale:
    """How the numbers of one column are written: in one unit, with as many decimals.

    Attributes:
        power: numbers are written in units of 10 to this power.
        decimals: decimals of each.

    Examples:
        >>> scale = Scale.of([0.0292, -0.0013])
        >>> scale.text, scale.shown(0.0292), scale.shown(-0.0013)
        ('in units of 10⁻³', '29.2', '-1.3')
    """

    power: int
    decimals: int

    @classmethod
    def of(cls, numbers: Iterable[float]) -> Scale:
        """The scale of some numbers: three digits of the largest."""
        most = max((abs(one) for one in numbers if math.isfinite(one)), default=0.0)
        digits = math.floor(math.log10(most)) if most > 0 else 0
        power = 0 if -1 <= digits <= 3 else 3 * (digits // 3)
        return cls(power, max(0, 2 - (digits - power)))

    @property
    def text(self) -> str:
        """The unit in words; empty if it is 1."""
        return f"in units of 10{str(self.power).translate(_RAISED)}" if self.power else ""

    def shown(self, value: float) -> str:
        """A number in this scale; a dash if it is not finite."""
        return f"{value / 10.0**self.power:.{self.decimals}f}" if math.isfinite(value) else "–"


def sure_text(sure: int | None, total: int) -> str:
    """From which rank on the order of a list is within the error, in words."""
    if sure is None:
        return "No error is known here: read the list, not the rank."
    if sure >= total:
        return f"The order of all {total} is surer than the errors that are known."
    return f"From rank {sure + 1} on, the order is within the error."


def sure_ranks(first: list[int], last: list[int]) -> int:
    """Number of first ranks whose order is surer than the errors that are known.

    Args:
        first: first possible rank of each sample of a list, from 1.
        last: last possible rank of each.

    Examples:
        >>> sure_ranks([1, 2, 3, 3], [1, 2, 4, 4])
        2
    """
    ranks = range(1, len(first) + 1)
    for rank, low, high in zip(ranks, first, last, strict=True):
        if not low == rank == high:
            return rank - 1
    return len(first)
