"""`python -m benchmarks.ranks`."""

import sys

from benchmarks.ranks.command import main

if __name__ == "__main__":
    sys.exit(main())
