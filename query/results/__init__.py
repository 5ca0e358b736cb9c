"""Answers, and the files written from them."""
