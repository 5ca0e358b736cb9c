"""Analyses of all samples of a store."""
