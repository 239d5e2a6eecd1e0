"""Starting weights: one family a file, over :mod:`weights`, which finds them, and :mod:`follow`, which watches them."""
