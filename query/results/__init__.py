"""Answers, and what is written of them."""
