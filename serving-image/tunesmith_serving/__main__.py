"""Entry point of the serving image: `python -m tunesmith_serving`, no arguments (docs/contract.md)."""

import sys

from tunesmith_serving.launcher import main

if __name__ == "__main__":
    sys.exit(main())
