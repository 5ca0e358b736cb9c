"""Fingerprints: hashes of all that identifies a row, and error messages if two differ."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from gradstore.errors import FingerprintError, StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue

    from gradstore.store.format.spec import Identity

# Query rows have other events than training rows. The rest must agree, or their inner product is
# meaningless.
COMPARED = ("model", "checkpoints", "objective", "projector", "metric")

# Arithmetic changes a row far less than its projection does, and depends on the machine's speed.
# Older stores recorded it in their identity.
_ARITHMETIC = (("projector", "precision"), ("objective", "autocast"))

_MEND = {
    "model": "use checkpoints of the same architecture",
    "checkpoints": "use the checkpoints that the store was made from (`gradstore info` lists them)",
    "objective": "use the store's objective",
    "projector": "use the store's projector; a random matrix depends on every one of its settings",
    "metric": "use the store's metric, fitted to the same samples (queries take it over)",
    "events": "use the same events",
    "noise": "use a numpy version that draws the same normal numbers (`gradstore info` shows the "
    "version that made the store)",
}


def fingerprint(value: object) -> str:
    """SHA-256 (64 hex digits) of an identity, or any part of a root object, as canonical JSON.

    Raises:
        ValueError: if it contains NaN or an infinite number.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return sha256(text.encode()).hexdigest()


def row_fingerprint(identity: Identity, checkpoint: int) -> str:
    """Fingerprint of the rows at one checkpoint (its position in `identity`), without the others.

    A seal holds this fingerprint, so that it stays valid when a checkpoint is added or dropped.
    """
    return fingerprint(only_checkpoints(identity, [checkpoint]))


def only_checkpoints(identity: Identity, places: Sequence[int]) -> Identity:
    """The identity of a store with only some checkpoints, given as positions in `identity`."""
    checkpoints, events = identity.get("checkpoints"), identity.get("events")
    if not isinstance(checkpoints, list) or not set(places) <= set(range(len(checkpoints))):
        raise StoreError("identity.checkpoints does not list the checkpoints")
    found = {**identity, "checkpoints": [checkpoints[place] for place in places]}
    # Replayed events are recorded per checkpoint, too.
    recorded = events.get("recorded") if isinstance(events, dict) else None
    if isinstance(recorded, list) and len(recorded) == len(checkpoints):
        found["events"] = {**events, "recorded": [recorded[place] for place in places]}  # type: ignore[dict-item]
    return found


def with_checkpoint(old: Identity, new: Identity) -> Identity:
    """The identity of a store with the checkpoints of `old`, then the single one of `new`."""
    identity: dict[str, Any] = dict(old)
    more: dict[str, Any] = dict(new)
    identity["checkpoints"] = [*identity["checkpoints"], *more["checkpoints"]]
    if "recorded" in identity["events"]:
        both = [*identity["events"]["recorded"], *more["events"]["recorded"]]
        identity["events"] = {**identity["events"], "recorded": both}
    return identity


def comparable(expected: Identity, found: Identity) -> tuple[Identity, Identity]:
    """Two identities without the values that need not agree.

    These values are the arithmetic, and values that an older identity does not record.
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
    """Whether a projector's probe used normal numbers that were rounded to bfloat16."""
    projector = identity.get("projector")
    return isinstance(projector, dict) and (
        projector.get("proj_type"),
        projector.get("precision"),
    ) == ("normal", "bfloat16")


def differences(
    expected: JsonValue, found: JsonValue, where: str = ""
) -> list[tuple[str, JsonValue, JsonValue]]:
    """Every leaf where two identities differ, as (dotted name, expected, found)."""
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
    """Raise unless two identities agree in `sections`, as far as `comparable` requires.

    Args:
        expected: the identity of the existing object.
        found: the identity of the object to use with it.
        expected_name: name of the first object in the message.
        found_name: name of the second object.
        sections: top-level keys that must agree.
        mend: the fix to suggest, if the caller knows a better one than this module.

    Raises:
        FingerprintError: with each difference and its fix.
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
    if mend and "noise" in differing:  # no configuration sets the noise
        mends.append(_MEND["noise"])
    raise FingerprintError(
        f"{found_name} does not fit {expected_name}; they differ in\n"
        + "\n".join(lines)
        + "\nTo mend it: "
        + "; ".join(mends)
        + "."
    )
