"""Speculative decoding of whole sequences: `generate`, the drafters it uses, and its statistics."""

from .drafters import ModelDrafter, NgramDrafter
from .loop import generate
from .proposal import Prefixes, Proposal, RoundInfo
from .stats import Stats
from .trees import Tree

__all__ = ["ModelDrafter", "NgramDrafter", "Prefixes", "Proposal", "RoundInfo", "Stats", "Tree", "generate"]
