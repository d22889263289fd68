"""Google's room: the wire format of the Gemini API and of Vertex AI, as Google's own SDK speaks it."""
