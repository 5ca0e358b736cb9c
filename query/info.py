"""Implementation of `gradstore info`: a summary of a store."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from gradstore.collect.provenance import Provenance
from gradstore.store.opening import as_store, open_store
from gradstore.text import one_line

if TYPE_CHECKING:
    from gradstore.store.opening import StoreLike


def describe(location: str) -> str:
    """Describe a store as text: content, progress and provenance."""
    found = examine(open_store(location))
    lines = [
        found["location"],
        f"  format       {found['format_version']}",
        f"  fingerprint  {found['fingerprint']}",
        f"  changes      {found['revision']:,}{_last(found)}",
        f"  samples      {found['samples']:,} (columns {', '.join(found['columns'])})",
        f"  deleted      {found['deleted']:,}, hidden from every reader"
        + (f"; free their bytes with: gradstore vacuum {location}" if found["deleted"] else ""),
        (
            f"  rows         {found['slots']} per sample and checkpoint, {found['dim']:,} × "
            f"{found['dtype']}"
        ),
        f"  model        {_short(found['model'])}",
        f"  objective    {_short(found['objective'])}",
        f"  projector    {_short(found['projector'])}",
        f"  events       {_short(found['events'])}",
        f"  metric       {_short(found['metric']) if found['metric'] else 'none'}",
        f"  size         {_size(found['nbytes'])}"
        + (
            f"; {_size(found['retired_nbytes'])} of it are no longer part of the store; free them "
            f"with: gradstore vacuum {location}"
            if found["retired_nbytes"]
            else ""
        ),
        "  checkpoints",
    ]
    lines += [
        f"    {one['number']}  eta {one['eta']:g}  shards "
        f"{one['sealed']}/{one['sealed'] + one['missing']} sealed, {one['missing']} missing; "
        f"{one['deleted']:,} samples deleted; {_size(one['nbytes'])}  {one['path']}"
        for one in found["checkpoints"]
    ]
    lines.append("  parts")
    lines += [
        f"    {one['samples']:,} samples, {one['deleted']:,} deleted, "
        + (f"{one['skipped']:,} damaged and left out, " if one["skipped"] else "")
        + f"{one['shard_samples']} per shard, {_size(one['nbytes'])}  {one['path'] or '.'}  "
        f"made by {_short(_maker(one['made_by']))}"
        for one in found["parts"]
    ]
    return "\n".join(map(one_line, lines))


def examine(store: StoreLike) -> dict[str, Any]:
    """Summarise a store: content, progress and provenance.

    Returns:
        The content of `gradstore info --json`. Each of `checkpoints` has the number of `sealed` and
        `missing` shards, and of `deleted` samples that are not vacuumed yet. `nbytes` counts all
        bytes below the store, `retired_nbytes` those no longer part of it. Each of `parts` has the
        number of damaged samples that were left out of it, `skipped`, and its provenance,
        `made_by`. `digest` is that of the root object, which every change
        of the store replaces; None in format 1.

    Raises:
        StoreError: if the store cannot be read.

    Examples:
        >>> import gradstore as gs
        >>> found = gs.examine("train.gradstore")
        >>> found["samples"], found["columns"], found["projector"]["name"]
        (7, ['id', 'label'], 'sjlt')
    """
    store = as_store(store)
    spec = store.spec
    identity: dict[str, Any] = spec.identity
    of_checkpoint, of_part, total, retired = Counter[int](), Counter[str](), 0, 0
    gone = tuple(f"{prefix}/" for prefix in spec.retired)
    for key, size in store.objects.sizes():
        total += size
        retired += size if f"{key}/".startswith(gone) else 0
        names = key.split("/")
        path = "/".join(names[:2]) if names[0] == "parts" else ""
        of_part[path] += size if key != "zarr.json" else 0
        rest = names[2:] if path else names
        if len(rest) > 2 and rest[0] in {"checkpoints", "seals"} and rest[1].isdecimal():
            of_checkpoint[int(rest[1])] += size
    sealed, missing = Counter[int](), Counter[int]()
    for number in store.numbers:
        for part in store.parts:
            found = part.sealed(number)
            sealed[number] += len(found)
            missing[number] += part.layout.shards - len(found & set(range(part.layout.shards)))
    return {
        "location": store.location,
        "format_version": spec.format_version,
        "fingerprint": spec.fingerprint,
        "revision": spec.revision,
        "change": spec.change,
        "digest": spec.digest,
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
        **{
            name: _section(identity, name)
            for name in ("objective", "projector", "events", "metric")
        },
        "nbytes": total,
        "retired_nbytes": retired,
        "checkpoints": [
            {
                "number": one.number,
                "path": one.path,
                "eta": one.eta,
                "epoch": one.epoch,
                "sealed": sealed[one.number],
                "missing": missing[one.number],
                "deleted": len(store.deletions),
                "nbytes": of_checkpoint[one.number],
            }
            for one in spec.checkpoints
        ],
        "parts": [
            {
                "path": part.spec.path,
                "samples": len(part),
                "deleted": len(store.deletions.rows(part.spec.path)),
                "skipped": Provenance.of(part.spec).skipped,
                "shard_samples": part.layout.shard_samples,
                "nbytes": of_part[part.spec.path],
                "made_by": part.spec.made_by,
            }
            for part in store.parts
        ],
    }


def _section(identity: dict[str, Any], name: str) -> dict[str, Any]:
    found = identity.get(name)
    return found if isinstance(found, dict) else {}


def _maker(made_by: dict[str, Any]) -> dict[str, Any]:
    """Entries of `made_by` to print: versions, device, engine, arithmetic, dataset."""
    names = ("device", "engine", "dataset")
    arithmetic = _section(made_by, "arithmetic")
    known = {**_section(made_by, "config"), **made_by}
    shown = {name: known[name] for name in names if known.get(name)}
    used = {f"{name} in": value for name, value in arithmetic.items()}
    return {**_section(made_by, "versions"), **shown, **used}


def _last(found: dict[str, Any]) -> str:
    return f", the last one: {found['change']}; digest {found['digest']}" if found["digest"] else ""


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f} MB" if nbytes >= 1e5 else f"{nbytes / 1e3:,.1f} kB"


def _short(value: dict[str, Any]) -> str:
    parts = []
    for key, item in value.items():
        text = json.dumps(item) if not isinstance(item, str) else item
        parts.append(f"{key} {text if len(text) <= 48 else text[:45] + '…'}")
    return ", ".join(parts)
