"""Choosing the weights to keep: scores, allocations, masks."""
