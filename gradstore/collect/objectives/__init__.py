"""Objectives: the function of model and event whose per-sample gradient becomes a row."""
