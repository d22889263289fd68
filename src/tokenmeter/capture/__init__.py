"""How a call is seen without changing it. Provider-neutral: imports no SDK, and is told about each by an `Sdk`."""

from __future__ import annotations

from tokenmeter.capture.client import AsyncCapture, Capture, bind, metered_class
from tokenmeter.capture.sdk import Binding, Sdk, binding_of

__all__ = ["AsyncCapture", "Binding", "Capture", "Sdk", "bind", "binding_of", "metered_class"]
