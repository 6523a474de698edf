"""One step trained by several processes, each with a device: the division of batches, and how processes communicate."""
