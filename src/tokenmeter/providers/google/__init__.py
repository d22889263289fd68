"""Google: its own usage object, as gateways and logs repeat it."""

from tokenmeter.providers.base import Room
from tokenmeter.providers.google.usage import SHAPES

__all__ = ["ROOM"]

ROOM = Room(shapes=SHAPES)
