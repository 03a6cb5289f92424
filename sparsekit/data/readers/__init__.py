"""Data sets that sparsekit brings as plugins, one a file; each is a function that returns a `sparsekit.Data`."""
