"""Built-in merge strategies, one a module; found through the entry points group `sparsekit.merges`."""
