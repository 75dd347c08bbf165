"""How fast, and in how much memory: one script a question, each printing ratios measured in one
run.

`unets` against the authors' networks and diffusers', and what the cascade adds; `scale` how time
and memory grow with frames, size, stages and processes; `gpu` whole sampling steps on CUDA;
`winograd` whether another way to convolve would help. The numbers: docs/speed.md.
"""

import zerosmooth  # noqa: F401  before torch, whose threads are told how to wait
