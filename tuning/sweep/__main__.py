"""`python -m tuning.sweep`."""

import sys

from tuning.sweep.job import COMMAND

if __name__ == "__main__":
    sys.exit(COMMAND.main())
