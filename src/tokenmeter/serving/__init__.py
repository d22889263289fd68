"""What others may see of a ledger over a wire: who may see how much of it, the usage API, probes, and MCP."""
