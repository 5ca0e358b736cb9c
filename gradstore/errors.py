"""The error tree.

Every message names the object, says what was found, and ends with what mends it. Everything
raised on purpose derives from `GradstoreError`, so a caller can catch one class; a traceback of
any other class is a bug.
"""

from __future__ import annotations


class GradstoreError(Exception):
    """Base class of all errors that gradstore raises on purpose."""


class ConfigError(GradstoreError):
    """A configuration value, flag or file is wrong."""


class DependencyError(GradstoreError):
    """A package that this step needs is missing or cannot do the job."""


class CheckpointError(GradstoreError):
    """A checkpoint is missing, half-written, unreadable or of another architecture."""


class DatasetError(GradstoreError):
    """A dataset is empty, malformed, does not fit the model, or changed."""


class EngineError(GradstoreError):
    """A gradient engine cannot differentiate a model."""


class GradientError(GradstoreError):
    """A gradient is not finite."""


class StoreError(GradstoreError):
    """A store is missing, damaged or cannot be created where it was asked for."""


class NotAStoreError(StoreError):
    """There is no store at a path."""


class UnsealedError(StoreError):
    """Rows were asked for that no finished shard holds."""


class FingerprintError(StoreError):
    """Two things that must share a fingerprint do not."""


class SearchIndexError(GradstoreError):
    """A search index is missing, damaged, or was built from something else."""


class QueryError(GradstoreError):
    """A query cannot be answered as asked."""
