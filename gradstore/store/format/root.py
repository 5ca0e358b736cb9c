"""The root object of a store, `zarr.json`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradstore.store.format.spec import StoreSpec


ROOT = "zarr.json"


def root_object(spec: StoreSpec) -> bytes:
    """Content of the `zarr.json` of a store's root group."""
    content = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"gradstore": spec.model_dump(mode="json", exclude_defaults=False)},
    }
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
