"""A world small enough to know everything about: coloured shapes that move, drawn at any frame
rate.

`draw` renders scenes and writes their prompts, `train` trains the small checkpoints on them, `gate`
reads videos back by rules on pixels and measures what a checkpoint can do.
"""

import zerosmooth  # noqa: F401  before torch, whose threads are told how to wait
