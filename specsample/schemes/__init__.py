"""The table of schemes. A scheme is a card and a reference in this folder, a header of the same name in csrc/schemes, and one line below."""

from . import (
    block,
    importance,
    kseq,
    lists,
    optimal,
    optimal_block,
    race,
    recursive,
    recursive_distinct,
    token,
    top,
    weighted,
)
from .card import Scheme

MODULES = (
    token, block, race, recursive, recursive_distinct, kseq, importance, optimal, optimal_block, weighted, top, lists,
)  # fmt: skip
SCHEMES = {module.CARD.name: module.CARD for module in MODULES}

__all__ = ["SCHEMES", "Scheme"]
