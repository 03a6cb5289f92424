"""The built-in merge strategies, one per module, to be used or subclassed from Python; importing them imports no torch.

They are found by name through the entry points group `sparsekit.merges`.
"""

from sparsekit.merges.best import Best
from sparsekit.merges.greedy import Greedy
from sparsekit.merges.none import NoMerge
from sparsekit.merges.uniform import Uniform

__all__ = ["Best", "Greedy", "NoMerge", "Uniform"]
