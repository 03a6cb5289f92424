"""Built-in pruning methods, one a module; found through the entry points group `sparsekit.methods`."""
