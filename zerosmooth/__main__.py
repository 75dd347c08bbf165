"""`python -m zerosmooth`: the command `sample.py`."""

if __name__ == "__main__":
    from sample import main

    raise SystemExit(main())
