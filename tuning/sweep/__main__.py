"""`python -m tuning.sweep`."""

import sys

from tuning.sweep.sweep import main

if __name__ == "__main__":
    sys.exit(main())
