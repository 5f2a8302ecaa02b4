"""``python -m superpoint_lib``: the command line."""

import sys

from superpoint_lib.cli import main

if __name__ == "__main__":
    sys.exit(main())
