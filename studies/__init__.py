"""Studies of claims, one folder each, and what several of them need: spoiled data, and measures of their own."""
