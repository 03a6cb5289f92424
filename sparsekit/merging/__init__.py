"""Candidates to one model."""
