"""`python -m zerosmooth`: the command."""

if __name__ == "__main__":
    from zerosmooth_cli.__main__ import command

    raise SystemExit(command())
