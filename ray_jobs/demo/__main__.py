"""`python -m ray_jobs.demo`."""

import sys

from ray_jobs.demo.command import main

if __name__ == "__main__":
    sys.exit(main())
