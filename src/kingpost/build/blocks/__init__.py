"""Blocks that nets are made of: plain modules, one family a file, each usable alone."""
