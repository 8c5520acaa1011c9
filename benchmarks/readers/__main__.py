"""`python -m benchmarks.readers`."""

import sys

from benchmarks.readers.command import main

if __name__ == "__main__":
    sys.exit(main())
