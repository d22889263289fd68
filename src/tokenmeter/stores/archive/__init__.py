"""Closed months out of the ledger and in files: sealed, dropped, read as if they were still there, brought back."""
