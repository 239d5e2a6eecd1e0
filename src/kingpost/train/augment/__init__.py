"""Techniques that change training batches."""
