"""`python -m zerosmooth`: the command `sample.py`."""

import sys

if __name__ == "__main__":
    from sample import main

    sys.exit(main())
