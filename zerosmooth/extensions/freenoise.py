"""FreeNoise (Qiu et al. 2023, arXiv 2310.15169), whose fusion of windows the paper uses.

Attention in windows; each stage starts from the noise of the first t0 frames, repeated in shuffled
order, and gets no fresh noise, which would drown it. Stages do not depend on each other. It is
not in the paper's tables.
"""

from __future__ import annotations

import random
from typing import Any

from torch import Tensor

from ..cascade import Cascade, Hook, by_stage, keep, sample_cascade
from ..samplers import Sampler


def sample_freenoise(network: Any, sampler: Sampler, cascade: Cascade, noise: Any, bus: Any,
                     hook: Hook = keep) -> list[Tensor]:
    """As `sample_cascade`; cascade.strength must be 0, and the sampler add no noise."""
    x = sampler.start(by_stage(noise(-1), cascade.scales)[0])
    frames = [cascade.frames_of(s) for s in range(cascade.stages)]
    xs = [repeated_noise(x, f, bus.frames - bus.overlap) for f in frames]
    return sample_cascade(network, sampler, cascade, noise, bus, hook, xs)


def repeated_noise(x: Tensor, frames: int, stride: int) -> Tensor:
    """Noise for `frames` frames: x, then blocks of `stride` frames, each the shuffled frames one
    window earlier. The order is the same for every seed. x: b t0 c h w."""
    window, rng = x.shape[1], random.Random("freenoise")
    order = list(range(window))
    while len(order) < frames:
        block = order[len(order) - window : len(order) - window + stride]
        rng.shuffle(block)
        order += block
    return x[:, order[:frames]]
