"""``python -m kingpost``: the same as the command ``kingpost``."""

import sys

from kingpost.cli import main

if __name__ == "__main__":
    sys.exit(main())
