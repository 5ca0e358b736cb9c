"""Analyses of influence beyond rankings."""
