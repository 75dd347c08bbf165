"""What the commands share: arguments, errors, results and their page, what `--check` says. The
library imports nothing of it."""
