"""Shared parts of the benchmarks: timing, targets, pages and plots."""
