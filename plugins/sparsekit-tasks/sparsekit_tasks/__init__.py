"""Tasks for sparsekit, one a module; found through the entry points group `sparsekit.tasks`."""
