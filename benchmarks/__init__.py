"""Benchmarks: each file answers one question and writes JSON, a plot and a page of what it found.

Run one with `python -m benchmarks.NAME --preset cpu`; `make bench` runs them all.
"""
