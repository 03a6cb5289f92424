"""Measuring a model: scores, metrics, corruptions, cost."""
