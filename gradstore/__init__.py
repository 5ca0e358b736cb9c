"""A gradient store for training-data attribution of diffusion models.

This package holds training samples' projected gradients: `gradstore.open` reads a store with
nothing but numpy and Zarr. Making one needs torch and diffusers, and lives in `gradstore.collect`.
"""

from __future__ import annotations

from gradstore.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    DependencyError,
    FingerprintError,
    GradientError,
    GradstoreError,
    QueryError,
    SearchIndexError,
    StoreError,
    UnsealedError,
)
from gradstore.manifest import Manifest
from gradstore.reader import Store
from gradstore.rows import Rows
from gradstore.verify import verify

__version__ = "0.1.0"

open = Store.open  # noqa: A001

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "DependencyError",
    "FingerprintError",
    "GradientError",
    "GradstoreError",
    "Manifest",
    "QueryError",
    "Rows",
    "SearchIndexError",
    "Store",
    "StoreError",
    "UnsealedError",
    "__version__",
    "open",
    "verify",
]
