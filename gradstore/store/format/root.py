"""The root object of a store, `zarr.json`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from gradstore.store.format.fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gradstore.store.format.spec import StoreSpec


ROOT = "zarr.json"

# Keys that format 1 lacks, and that its readers refuse.
_SINCE_2: Final = {"generation", "next_number", "change", "previous", "digest", "samples_hash"}


def root_object(spec: StoreSpec) -> bytes:
    """Content of the `zarr.json` of a store's root group, with its digest computed anew."""
    state = root_state(spec)
    if spec.format_version > 1:
        state["digest"] = root_digest(state)
    content = {"zarr_format": 3, "node_type": "group", "attributes": {"gradstore": state}}
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def root_state(spec: StoreSpec) -> dict[str, Any]:
    """The attribute `gradstore` of a root object."""
    state = spec.model_dump(mode="json", exclude_defaults=False)
    if spec.format_version == 1:
        state = _without(state, *_SINCE_2)
        state["checkpoints"] = [_without(one, "metric") for one in state["checkpoints"]]
        state["parts"] = [
            {**_without(part, "manifest"), "layout": _without(part["layout"], "columns")}
            for part in state["parts"]
        ]
    return state


def root_digest(state: Mapping[str, Any]) -> str:
    """SHA-256 (64 hex digits) of all that a root says, without its own digest.

    Args:
        state: the attribute `gradstore`.
    """
    return fingerprint(_without(state, "digest"))


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in names}
