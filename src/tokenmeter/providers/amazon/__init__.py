"""Amazon Bedrock: the usage object of its Converse API, as gateways and logs repeat it."""
