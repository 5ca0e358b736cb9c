"""Measures: how rows become influence."""
