"""Data: sources, and loaders whose position can be saved."""
