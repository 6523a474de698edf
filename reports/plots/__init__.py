"""Pictures of a store, drawn from its records by matplotlib's objects alone: pyplot would keep figures and state."""
