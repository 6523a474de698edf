"""Records of steps, their store, protocols and scores, and the ledger of published numbers."""
