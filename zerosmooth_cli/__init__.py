"""The command, and what others share with it: arguments, errors, results and their page, what
`--check` says. The library imports nothing of it, but a video that is shown in a notebook."""
