"""Lottery tickets and pruning before training, one method a module; found through the group `sparsekit.methods`."""
