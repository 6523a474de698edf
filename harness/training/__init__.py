"""The training of one step: the loop, gradients, the optimiser, losses that are not finite, checkpoints."""
