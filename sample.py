"""The command in a clone: `zerosmooth_cli/main.py` says what it does."""

import sys

from zerosmooth_cli.__main__ import command

if __name__ == "__main__":
    sys.exit(command("sample.py"))
