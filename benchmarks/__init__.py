"""How fast, and in how much memory: ratios measured in one run. The numbers are in docs/speed.md.

`unets`: our networks against the authors' and diffusers', and what the cascade adds, on the CPU.
`gpu`: whether results on CUDA are right, and time and memory of whole sampling steps there.
"""

import zerosmooth  # noqa: F401  before torch, whose threads are told how to wait
