"""The built-in pruning methods, one per module, to be used or subclassed from Python; importing them imports no torch.

They are found by name through the entry points group `sparsekit.methods`.
"""

from sparsekit.methods.bimp import BIMP
from sparsekit.methods.dpf import DPF
from sparsekit.methods.gmp import GMP
from sparsekit.methods.imp import IMP
from sparsekit.methods.oneshot import OneShot

__all__ = ["BIMP", "DPF", "GMP", "IMP", "OneShot"]
