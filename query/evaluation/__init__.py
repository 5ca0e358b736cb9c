"""Evaluation: does a measure foretell what retraining does?"""
