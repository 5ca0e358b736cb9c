"""Datasets as samples with stable ids."""
