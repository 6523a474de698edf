"""The ledger of published numbers, as text and JSON."""
