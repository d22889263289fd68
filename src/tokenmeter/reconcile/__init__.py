"""The ledger against the provider's own books."""
