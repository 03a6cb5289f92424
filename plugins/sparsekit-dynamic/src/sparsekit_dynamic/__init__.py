"""Pruning methods for sparsekit that move their zeros while they train: RigL, SET, GraNet and AC/DC."""

from sparsekit_dynamic.acdc import ACDC
from sparsekit_dynamic.granet import GraNet
from sparsekit_dynamic.rigl import RigL
from sparsekit_dynamic.set import SET

__all__ = ["ACDC", "SET", "GraNet", "RigL"]
