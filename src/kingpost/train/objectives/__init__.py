"""Techniques that change what the loss is made of."""
