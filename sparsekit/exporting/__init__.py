"""Exporting a finished model to other formats."""
