"""Fingerprints: what identifies a row, hashed, and what to say when two of them differ."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from gradstore.errors import FingerprintError, StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from gradstore.store.format.spec import Identity

# Rows of a query are made with other events than rows of training; the rest must agree before
# their inner product means anything.
COMPARED = ("model", "checkpoints", "objective", "projector")

# Arithmetic moves a row far less than its projection does, and is chosen by what is fast on a
# machine. Stores recorded it in their identity before it was left to the machine.
_ARITHMETIC = (("projector", "precision"), ("objective", "autocast"))

_MEND = {
    "model": "use checkpoints of the same architecture",
    "checkpoints": "use the checkpoints that the store was made from (`gradstore info` lists them)",
    "objective": "use the store's objective",
    "projector": "use the store's projector; a random matrix depends on every one of its settings",
    "events": "use the same events",
    "noise": "use a numpy that draws the same normal numbers (`gradstore info` shows the version "
    "that made the store)",
}


def fingerprint(identity: Identity) -> str:
    """SHA-256 (64 hex digits) of the identity as canonical JSON."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return sha256(text.encode()).hexdigest()


def row_fingerprint(identity: Identity, checkpoint: int) -> str:
    """Fingerprint of the rows at one checkpoint (its place in `identity`), whatever the others are.

    It is what a seal holds, so that it stays true when a checkpoint is added or dropped.
    """
    return fingerprint(only_checkpoints(identity, [checkpoint]))


def only_checkpoints(identity: Identity, places: Sequence[int]) -> Identity:
    """The identity of a store of some of its checkpoints (places in `identity`) alone."""
    checkpoints, events = identity.get("checkpoints"), identity.get("events")
    if not isinstance(checkpoints, list) or not set(places) <= set(range(len(checkpoints))):
        raise StoreError("identity.checkpoints does not list the checkpoints")
    found = {**identity, "checkpoints": [checkpoints[place] for place in places]}
    # Replayed events are of a checkpoint, too.
    recorded = events.get("recorded") if isinstance(events, dict) else None
    if isinstance(recorded, list) and len(recorded) == len(checkpoints):
        found["events"] = {**events, "recorded": [recorded[place] for place in places]}  # type: ignore[dict-item]
    return found


def with_checkpoint(old: Identity, new: Identity) -> Identity:
    """The identity of a store of `old`'s checkpoints and then `new`'s only one."""
    identity: dict[str, Any] = dict(old)
    more: dict[str, Any] = dict(new)
    identity["checkpoints"] = [*identity["checkpoints"], *more["checkpoints"]]
    if "recorded" in identity["events"]:
        both = [*identity["events"]["recorded"], *more["events"]["recorded"]]
        identity["events"] = {**identity["events"], "recorded": both}
    return identity


def comparable(expected: Identity, found: Identity) -> tuple[Identity, Identity]:
    """Two identities without what need not agree.

    That is arithmetic; and what one of them does not record, since it was made before that was
    recorded.
    """
    both = expected, found
    left, right = ({**one} for one in both)
    for section, name in _ARITHMETIC:
        for one in (left, right):
            value = one.get(section)
            if isinstance(value, dict):
                one[section] = {key: item for key, item in value.items() if key != name}
    if any("noise" not in one for one in both):
        left.pop("noise", None), right.pop("noise", None)
    if any(_probed_in_bfloat16(one) for one in both):
        for one in (left, right):
            one["projector"] = {**one["projector"], "probe": None}  # type: ignore[dict-item]
    return left, right


def _probed_in_bfloat16(identity: Identity) -> bool:
    """Whether a projector's probe was taken of normal numbers that were rounded to two bytes."""
    projector = identity.get("projector")
    return isinstance(projector, dict) and (
        projector.get("proj_type"),
        projector.get("precision"),
    ) == ("normal", "bfloat16")


def differences(
    expected: JsonValue, found: JsonValue, where: str = ""
) -> list[tuple[str, JsonValue, JsonValue]]:
    """Every leaf at which two identities differ, as (dotted name, expected, found)."""
    if expected == found:
        return []
    if isinstance(expected, dict) and isinstance(found, dict):
        return [
            difference
            for key in sorted(expected.keys() | found.keys())
            for difference in differences(
                expected.get(key), found.get(key), f"{where}.{key}" if where else key
            )
        ]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return [
            difference
            for position, (left, right) in enumerate(zip(expected, found, strict=True))
            for difference in differences(left, right, f"{where}.{position}")
        ]
    return [(where, expected, found)]


def _shown(value: JsonValue) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"


def require_same(
    expected: Identity,
    found: Identity,
    *,
    expected_name: str,
    found_name: str,
    sections: tuple[str, ...],
    mend: str = "",
) -> None:
    """Raise unless two identities agree in `sections`, as far as they have to (`comparable`).

    Args:
        expected: the identity of the thing that was there first.
        found: the identity of the thing that is to be used with it.
        expected_name: what to call the first in the message.
        found_name: what to call the second.
        sections: top-level keys that must agree.
        mend: what to do about it, where the caller knows better than this module.

    Raises:
        FingerprintError: naming each difference and how to mend it.
    """
    expected, found = comparable(expected, found)
    found_differences = differences(
        {key: expected.get(key) for key in sections}, {key: found.get(key) for key in sections}
    )
    if not found_differences:
        return
    lines = [
        f"  {where}: {_shown(left)} in {expected_name}, {_shown(right)} in {found_name}"
        for where, left, right in found_differences[:12]
    ]
    if len(found_differences) > 12:
        lines.append(f"  … and {len(found_differences) - 12} more")
    differing = {where.split(".")[0] for where, _, _ in found_differences}
    mends = [mend] if mend else [_MEND[one] for one in sections if one in differing]
    if mend and "noise" in differing:  # which no configuration says
        mends.append(_MEND["noise"])
    raise FingerprintError(
        f"{found_name} does not fit {expected_name}; they differ in\n"
        + "\n".join(lines)
        + "\nTo mend it: "
        + "; ".join(mends)
        + "."
    )
