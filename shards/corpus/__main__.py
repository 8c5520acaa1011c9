"""`python -m shards.corpus`."""

import sys

from shards.corpus.command import main

if __name__ == "__main__":
    sys.exit(main())
