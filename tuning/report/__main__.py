"""`python -m tuning.report`."""

import sys

from tuning.report.report import main

if __name__ == "__main__":
    sys.exit(main())
