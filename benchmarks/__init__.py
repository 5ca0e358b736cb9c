"""Benchmarks: each file answers one question and writes its results as JSON, a plot and a page.

Run one with `python -m benchmarks.NAME --preset cpu`; `make bench` runs them all.
"""
