"""`python -m tuning.run`."""

import sys

from tuning.run.job import COMMAND

if __name__ == "__main__":
    sys.exit(COMMAND.main())
