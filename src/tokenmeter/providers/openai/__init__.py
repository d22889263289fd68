"""OpenAI's room: its wire format, which compatible hosts speak as well."""
