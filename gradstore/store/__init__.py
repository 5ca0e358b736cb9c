"""Bytes on a disk or in an object store: the format, reading, writing and changing it."""
