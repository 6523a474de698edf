"""A run: from what was asked for to a plan, its steps trained and tested, and the store of trained steps."""
