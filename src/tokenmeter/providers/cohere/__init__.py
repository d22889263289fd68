"""Cohere: the usage object of its own API, for answers that are recorded by hand."""
