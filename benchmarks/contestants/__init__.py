"""Peers that benchmarks compare with, each given the same events."""
