"""What the commands share: their arguments, their errors, and what `--check` says. The library
imports nothing of it."""
