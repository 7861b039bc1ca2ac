"""Speculative decoding of whole sequences: `generate`, what drafts for it, and what it counts."""

from .drafters import ModelDrafter, NgramDrafter, Prefixes, Proposal, RoundInfo
from .loop import generate
from .stats import Stats

__all__ = ["ModelDrafter", "NgramDrafter", "Prefixes", "Proposal", "RoundInfo", "Stats", "generate"]
