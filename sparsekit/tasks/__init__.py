"""The built-in tasks, to be used or subclassed from Python; importing them imports no torch.

They are found by name through the entry points group `sparsekit.tasks`.
"""

from sparsekit.tasks.classification import Classification

__all__ = ["Classification"]
