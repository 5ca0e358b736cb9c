"""Measures: weights of rows, which define influence."""
