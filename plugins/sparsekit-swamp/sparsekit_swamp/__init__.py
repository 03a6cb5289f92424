"""SWAMP, a pruning method for sparsekit; found through the entry points group `sparsekit.methods`."""
