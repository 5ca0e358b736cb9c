"""Peers for the benchmarks, each given the same events."""
