"""A finished model in other formats."""
