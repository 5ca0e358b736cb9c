"""The format of a store, without reading or writing it."""
