"""Pruning methods that find their zeros while training, one a module."""
