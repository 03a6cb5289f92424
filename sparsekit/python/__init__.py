"""sparsekit from Python: `sparsekit.fit`, `plan`, `evaluate`, `merge`, `export` and `load`."""
