"""Exact search: scores every training sample."""
