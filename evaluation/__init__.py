"""Measures a checkpoint, the method and its baselines: `python -m evaluation --help`."""
