"""The error classes.

Every message names the object, states what was found, and ends with the fix. All intentional
errors derive from `GradstoreError`, so a caller can catch one class; a traceback of any other
class is a bug.
"""

from __future__ import annotations


class GradstoreError(Exception):
    """Base class of all errors that gradstore raises on purpose."""


class ConfigError(GradstoreError):
    """A configuration value, flag or file is wrong."""


class UnknownNameError(ConfigError):
    """A store records a dataset or checkpoint that the user never named."""


class DependencyError(GradstoreError):
    """A package that this step needs is missing or cannot do the job."""


class CheckpointError(GradstoreError):
    """A checkpoint is missing, incomplete, unreadable or of another architecture."""


class DatasetError(GradstoreError):
    """A dataset is empty, malformed, does not fit the model, or changed."""


class UnreadableError(DatasetError):
    """A sample is damaged."""


class EngineError(GradstoreError):
    """A gradient engine cannot differentiate a model."""


class GradientError(GradstoreError):
    """A gradient is not finite."""


class StoreError(GradstoreError):
    """A store is missing, damaged or cannot be created at the given location."""


class NotAStoreError(StoreError):
    """There is no store at a path."""


class UnsealedError(StoreError):
    """A requested row is not in a sealed shard."""


class FingerprintError(StoreError):
    """Two objects that must have the same fingerprint do not."""


class SearchIndexError(GradstoreError):
    """A search index is missing, damaged, or was built from other data."""


class QueryError(GradstoreError):
    """A query cannot be answered as requested."""


class BusyError(GradstoreError):
    """A server has as much to do as it takes on."""
