"""How a call is seen without changing it.

`calls`, `responses` and `settlement` know calls, answers and the meter, and no SDK; `stainless` is the seam to the SDKs
that Stainless generates, `sockets` that to their WebSocket connections. What belongs to a provider is in its room.
"""
