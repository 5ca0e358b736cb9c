"""A gradient store for training-data attribution of diffusion models.

This package holds training samples' projected gradients: `gradstore.open_store` reads a store with
nothing but numpy and Zarr. Making one needs torch and diffusers, and lives in `gradstore.collect`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradstore.lazy import exporter

if TYPE_CHECKING:
    from gradstore.changes import delete, drop_checkpoint, merge, vacuum
    from gradstore.errors import (
        CheckpointError,
        ConfigError,
        DatasetError,
        DependencyError,
        FingerprintError,
        GradientError,
        GradstoreError,
        NotAStoreError,
        QueryError,
        SearchIndexError,
        StoreError,
        UnsealedError,
    )
    from gradstore.manifest import Manifest
    from gradstore.reader import Store, open_store
    from gradstore.rows import Rows

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "DependencyError",
    "FingerprintError",
    "GradientError",
    "GradstoreError",
    "Manifest",
    "NotAStoreError",
    "QueryError",
    "Rows",
    "SearchIndexError",
    "Store",
    "StoreError",
    "UnsealedError",
    "__version__",
    "delete",
    "drop_checkpoint",
    "merge",
    "open_store",
    "vacuum",
]

_HOMES = {
    "Manifest": "gradstore.manifest",
    "Rows": "gradstore.rows",
    "Store": "gradstore.reader",
    "delete": "gradstore.changes",
    "drop_checkpoint": "gradstore.changes",
    "merge": "gradstore.changes",
    "open_store": "gradstore.reader",
    "vacuum": "gradstore.changes",
}
__getattr__ = exporter(__name__, {name: _HOMES.get(name, "gradstore.errors") for name in __all__})
