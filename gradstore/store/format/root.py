"""The root object of a store, `zarr.json`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradstore.store.format.spec import StoreSpec


ROOT = "zarr.json"


def root_object(spec: StoreSpec) -> bytes:
    """Content of the `zarr.json` of a store's root group."""
    state = spec.model_dump(mode="json", exclude_defaults=False)
    if spec.format_version == 1:  # readers of format 1 refuse the keys that it lacks
        state["checkpoints"] = [_without(one, "metric") for one in state["checkpoints"]]
        state["parts"] = [
            {**part, "layout": _without(part["layout"], "columns")} for part in state["parts"]
        ]
    content = {"zarr_format": 3, "node_type": "group", "attributes": {"gradstore": state}}
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _without(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}
