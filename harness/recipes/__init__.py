"""Recipes: what can be chosen, how profiles, methods and settings are merged, and where releases depart from papers."""
