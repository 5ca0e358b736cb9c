"""Exact search: every training sample is scored."""
