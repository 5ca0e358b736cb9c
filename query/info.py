"""`gradstore info`: a store at a glance."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from gradstore.reader import Store, open_store


def describe(location: str) -> str:
    """What a store holds, how far it is, and what made it, as text."""
    found = examine(open_store(location))
    lines = [
        found["location"],
        f"  format       {found['format_version']}",
        f"  fingerprint  {found['fingerprint']}",
        f"  samples      {found['samples']:,} (columns {', '.join(found['columns'])})",
        f"  deleted      {found['deleted']:,}, hidden from every reader"
        + (f"; their bytes go with: gradstore vacuum {location}" if found["deleted"] else ""),
        (
            f"  rows         {found['slots']} per sample and checkpoint, {found['dim']:,} × "
            f"{found['dtype']}"
        ),
        f"  model        {_short(found['model'])}",
        f"  objective    {_short(found['objective'])}",
        f"  projector    {_short(found['projector'])}",
        f"  events       {_short(found['events'])}",
        f"  size         {_size(found['nbytes'])}",
        "  checkpoints",
    ]
    for one in found["checkpoints"]:
        state = "sealed" if not one["missing"] else f"{one['missing']} missing"
        lines.append(
            f"    {one['number']}  eta {one['eta']:g}  shards "
            f"{one['sealed']}/{one['sealed'] + one['missing']} {state}  {_size(one['nbytes'])}  "
            f"{one['path']}"
        )
    lines.append("  parts")
    lines += [
        f"    {one['samples']:,} samples, {one['deleted']:,} deleted, "
        f"{one['shard_samples']} per shard, {_size(one['nbytes'])}  {one['path'] or '.'}  "
        f"made by {_short(one['versions'])}"
        for one in found["parts"]
    ]
    return "\n".join(lines)


def examine(store: Store) -> dict[str, Any]:
    """What `describe` says, as data."""
    spec = store.spec
    identity: dict[str, Any] = spec.identity
    of_checkpoint, of_part, total = Counter[int](), Counter[str](), 0
    for key, size in store.objects.sizes():
        total += size
        names = key.split("/")
        path = "/".join(names[:2]) if names[0] == "parts" else ""
        of_part[path] += size if key != "zarr.json" else 0
        rest = names[2:] if path else names
        if len(rest) > 2 and rest[0] in {"checkpoints", "seals"} and rest[1].isdecimal():
            of_checkpoint[int(rest[1])] += size
    sealed = {
        number: sum(len(part.sealed(number)) for part in store.parts) for number in store.numbers
    }
    missing = {
        number: sum(len(part.missing(number)) for part in store.parts) for number in store.numbers
    }
    return {
        "location": store.location,
        "format_version": spec.format_version,
        "fingerprint": spec.fingerprint,
        "samples": store.samples,
        "columns": ["id", *store.manifest.metadata],
        "deleted": len(store.deletions),
        "slots": store.slots,
        "dim": store.dim,
        "dtype": store.dtype,
        "model": {
            name: value
            for name, value in _section(identity, "model").items()
            if name in {"class", "num_parameters"}
        },
        **{name: _section(identity, name) for name in ("objective", "projector", "events")},
        "nbytes": total,
        "checkpoints": [
            {
                "number": one.number,
                "path": one.path,
                "eta": one.eta,
                "epoch": one.epoch,
                "sealed": sealed[one.number],
                "missing": missing[one.number],
                "nbytes": of_checkpoint[one.number],
            }
            for one in spec.checkpoints
        ],
        "parts": [
            {
                "path": part.spec.path,
                "samples": len(part),
                "deleted": len(store.deletions.rows(part.spec.path)),
                "shard_samples": part.layout.shard_samples,
                "nbytes": of_part[part.spec.path],
                "versions": _section(part.spec.made_by, "versions"),
            }
            for part in store.parts
        ],
    }


def _section(identity: dict[str, Any], name: str) -> dict[str, Any]:
    found = identity.get(name)
    return found if isinstance(found, dict) else {}


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f} MB"


def _short(value: dict[str, Any]) -> str:
    parts = []
    for key, item in value.items():
        text = json.dumps(item) if not isinstance(item, str) else item
        parts.append(f"{key} {text if len(text) <= 48 else text[:45] + '…'}")
    return ", ".join(parts)
