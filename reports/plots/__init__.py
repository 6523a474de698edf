"""Pictures of a store, drawn from its records alone by matplotlib's objects: no pyplot, no state, no torch."""
