"""DDNM (Wang et al. 2022, arXiv 2212.00490), a baseline of the paper: Eq. 6 on latents.

In every step the key frames' predicted x0 is replaced by stage 0's; nothing else is corrected.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..cascade import Cascade, Hook, keep, sample_cascade
from ..operators import S, back_project
from ..samplers import Sampler


def sample_ddnm(network: Any, sampler: Sampler, cascade: Cascade, noise: Any, bus: Any,
                hook: Hook = keep, **begin: Any) -> list[Tensor]:
    """As `sample_cascade`; cascade.strength must be 0. begin: its xs and steps."""

    def replace(step: int, x0s: list[Tensor]) -> list[Tensor]:
        ops = [S(cascade.scale_of(s)) for s in range(1, len(x0s))]
        later = [back_project(x0, x0s[0], M) for x0, M in zip(x0s[1:], ops)]
        return hook(step, [x0s[0], *later])

    return sample_cascade(network, sampler, cascade, noise, bus, replace, **begin)
