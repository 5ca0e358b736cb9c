"""Computes the rows of a store from a dataset and checkpoints."""
