"""tokenmeter: record, price, attribute and cap every OpenAI and Anthropic call."""
