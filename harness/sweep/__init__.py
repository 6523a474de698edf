"""Many runs as one graph of steps: planned, shared, executed, watched."""
