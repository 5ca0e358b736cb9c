"""Stores on a disk or in an object store: their format, and how to read, write and change them."""
