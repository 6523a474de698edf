"""The Method interface, data, models, the training of a step and a run."""
