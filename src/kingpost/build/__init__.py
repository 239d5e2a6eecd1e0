"""Build: networks, their parts, and their starting weights."""
