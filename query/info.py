"""`gradstore info`: a store at a glance."""

from __future__ import annotations

import json
from typing import Any

from gradstore.reader import open_store


def describe(path: str) -> str:
    """What a store holds, how far it is, and what made it, as text."""
    store = open_store(path)
    layout, spec = store.layout, store.spec
    identity: dict[str, Any] = spec.identity
    model, objective, projector = identity["model"], identity["objective"], identity["projector"]
    columns = ", ".join(["id", *store.manifest.metadata])
    lines = [
        str(store.path),
        f"  format       {spec.format_version}",
        f"  fingerprint  {spec.fingerprint}",
        f"  samples      {layout.samples:,} (columns {columns})",
        f"  rows         {layout.slots} per sample and checkpoint, {layout.dim:,} × {layout.dtype}",
        f"  model        {model['class']}, {model['num_parameters']:,} parameters",
        f"  objective    {_short(objective)}",
        f"  projector    {_short(projector)}",
        f"  events       {_short(identity['events'])}",
        f"  size         {store.nbytes / 1e6:,.1f} MB",
        f"  made by      {_short(spec.made_by.get('versions', {}))}",
        "  checkpoints",
    ]
    for number, checkpoint in enumerate(spec.checkpoints):
        sealed = len(store.sealed(number))
        state = "sealed" if sealed == layout.shards else f"{layout.shards - sealed} missing"
        lines.append(
            f"    {number}  eta {checkpoint.eta:g}  shards {sealed}/{layout.shards} {state}  "
            f"{checkpoint.path}"
        )
    return "\n".join(lines)


def _short(value: dict[str, Any]) -> str:
    parts = []
    for key, item in value.items():
        text = json.dumps(item) if not isinstance(item, str) else item
        parts.append(f"{key} {text if len(text) <= 48 else text[:45] + '…'}")
    return ", ".join(parts)
