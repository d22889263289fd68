"""Amazon Bedrock: the usage object of its Converse API, as gateways and logs repeat it."""

from tokenmeter.providers.amazon.usage import SHAPES
from tokenmeter.providers.base import Room

__all__ = ["ROOM"]

ROOM = Room(shapes=SHAPES)
