"""Built-in tasks, one per module; found through the entry points group `sparsekit.tasks`."""
