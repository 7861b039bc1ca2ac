"""The table of schemes. A scheme is a card and a reference here, a header of its name in csrc/schemes, one line below."""

from . import block, race, token
from .card import Scheme

SCHEMES = {module.CARD.name: module.CARD for module in (token, block, race)}

__all__ = ["SCHEMES", "Scheme"]
