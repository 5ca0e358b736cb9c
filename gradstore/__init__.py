"""A gradient store for training-data attribution of diffusion models.

This package holds training samples' projected gradients: `gradstore.open_store` reads a store with
nothing but numpy and Zarr. Making one needs torch and diffusers, and lives in `gradstore.collect`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradstore.lazy import exporter

if TYPE_CHECKING:
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
    from gradstore.store.changes.checkpoints import drop_checkpoint
    from gradstore.store.changes.delete import delete
    from gradstore.store.changes.merge import merge
    from gradstore.store.changes.vacuum import vacuum
    from gradstore.store.format.manifest import Manifest
    from gradstore.store.format.rows import Rows
    from gradstore.store.opening import open_store
    from gradstore.store.reader import Store

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
    "Manifest": "gradstore.store.format.manifest",
    "Rows": "gradstore.store.format.rows",
    "Store": "gradstore.store.reader",
    "delete": "gradstore.store.changes.delete",
    "drop_checkpoint": "gradstore.store.changes.checkpoints",
    "merge": "gradstore.store.changes.merge",
    "open_store": "gradstore.store.opening",
    "vacuum": "gradstore.store.changes.vacuum",
}
__getattr__ = exporter(__name__, {name: _HOMES.get(name, "gradstore.errors") for name in __all__})
