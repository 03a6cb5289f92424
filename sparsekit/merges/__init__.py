"""Built-in merge strategies, one per module; found through the entry points group `sparsekit.merges`."""
