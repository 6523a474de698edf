"""Segmentation networks that grow by a step's classes, and their pre-trained weights."""
