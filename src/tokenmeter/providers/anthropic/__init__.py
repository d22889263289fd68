"""Anthropic's room: its wire format, as Anthropic, Amazon Bedrock, Google Vertex AI and compatible hosts speak it."""
