"""One step on several devices: processes that share the batches, and what they agree on."""
