"""Where the command begins, as `zerosmooth`, `python -m zerosmooth` (or of this package) or
`python sample.py`."""

import signal
import sys


def command(name: str = "zerosmooth") -> int:
    """Run it. name: what it is called in what it says. Returns the exit status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while torch loads
    from .main import main

    return main(name=name)


if __name__ == "__main__":
    sys.exit(command())
