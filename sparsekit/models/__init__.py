"""Models and their weights: created, saved and read back."""
