"""Tables and pages made from the store and the ledger alone."""
