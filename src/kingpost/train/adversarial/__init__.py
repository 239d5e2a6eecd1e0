"""Techniques that train on inputs changed to mislead the model, and the measure of how well that works."""
