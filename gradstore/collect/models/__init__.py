"""Checkpoints: folders, records, loading, and the selection of parameters."""
