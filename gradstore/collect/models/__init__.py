"""Checkpoints: folders, records, loading, and which parameters are differentiated."""
