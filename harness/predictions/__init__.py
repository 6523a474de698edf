"""Predictions: scored from files of any code base, or made from the weights of a run."""
