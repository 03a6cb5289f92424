"""Merging candidates into one model."""
