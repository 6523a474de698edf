"""The regression check: measured numbers against baselines and published ones."""
