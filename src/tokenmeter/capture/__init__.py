"""How a call is seen without changing it.

`calls`, `responses` and `settlement` know calls, answers and the meter, and no SDK. `stainless` is the seam to the SDKs
that Stainless generates, for calls, and `streams` for what comes back; `genai` is the seam to Google's. `sockets`
watches WebSocket connections, and `conversation` is what goes on over one. What belongs to a provider is in its room.
"""
