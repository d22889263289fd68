"""How a call is seen without changing it.

`calls`, `responses` and `settlement` know calls, answers and the meter, and no SDK. `stainless` is the seam to the SDKs
that Stainless generates, for calls, and `streams` for what comes back; `genai` is the seam to Google's. `conversation`
follows WebSocket connections. What belongs to a provider is in its room.
"""
