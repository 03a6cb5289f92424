"""Built-in pruning methods, one per module; found through the entry points group `sparsekit.methods`."""
