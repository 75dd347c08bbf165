"""Samplers of flow matching, x = (1 - s) data + s noise, for a network that predicts noise - data:
UniPC (Zhao et al. 2023, arXiv 2302.04867) of order 2 as Wan is published with, and Euler."""

from __future__ import annotations

from dataclasses import dataclass
from math import expm1, inf, log
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from zerosmooth.fields import Range, UserError, check, check_fields
from zerosmooth.samplers import STEPS


@dataclass(frozen=True)
class FlowConfig:
    kind: Literal["unipc", "unipc_authors", "euler"] = "unipc"  # with diffusers' levels, or theirs
    shift: Annotated[float, Range(1e-3, 1e3)] = 3.0  # of noise levels, to more noise; larger videos
    # and fewer steps take more

    def __post_init__(self) -> None:
        check_fields(self)

    def sampler(self, steps: int, eta: float = 0.0) -> FlowEuler:
        if eta != 0:
            raise UserError(f"eta={eta}; this model's sampler adds no noise: use 0")
        return FlowEuler(self, steps) if self.kind == "euler" else UniPC(self, steps)

    def levels(self, n: int) -> np.ndarray:
        """n noise levels, the highest first, and 0."""
        i = np.arange(n)
        if self.kind == "euler":
            s = 1 - (1 - self.shifted(0.001)) * i / max(1, n - 1)  # the last is shifted twice
        else:
            s = 1 - 0.999 * i / n if self.kind == "unipc" else 0.999 * (1 - i / n)
        s = self.shifted(s)
        if self.kind == "unipc":
            s[0] -= 1e-6  # so that it is not pure noise
        return np.append(s, 0.0)

    def shifted(self, s):  # noqa: ANN001, ANN201 - a number or an array
        return self.shift * s / (1 + (self.shift - 1) * s)


class FlowEuler:
    """Euler's method. steps: network evaluations. UserError if out of range."""

    stochastic = False

    def __init__(self, config: FlowConfig, steps: int) -> None:
        check("steps", steps, int, STEPS)
        self.config, self.levels = config, [float(s) for s in config.levels(steps)]

    def __len__(self) -> int:
        return len(self.levels) - 1

    def timestep(self, i: int) -> float:
        return 1000 * self.levels[i]

    def share(self, i: int) -> float:
        return self.levels[i]

    def start(self, noise: Tensor) -> Tensor:
        return noise

    def network_input(self, i: int, x: Tensor) -> Tensor:
        return x

    def x0(self, i: int, x: Tensor, output: Tensor) -> Tensor:
        return x - self.levels[i] * output

    def noised(self, i: int, x0: Tensor, noise: Tensor) -> Tensor:
        return torch.lerp(x0, noise, self.levels[i])

    def step(self, i: int, x: Tensor, x0: Tensor, noise: Tensor | None = None) -> Tensor:
        return x0 + (x - x0) * (self.levels[i + 1] / self.levels[i])


class UniPC(FlowEuler):
    """Of order 2, "bh2", on data: each step is corrected once the data of its end is known, then
    the next one is predicted. It is told whole timesteps.

    It remembers the last steps of the one clip that it samples; at a step that does not follow upon
    the last one it begins anew.
    """

    def __init__(self, config: FlowConfig, steps: int) -> None:
        super().__init__(config, steps)
        self.past: list[tuple[int, Tensor, Tensor]] = []  # step, x as corrected, data; the last two

    def timestep(self, i: int) -> float:
        return int(1000 * self.levels[i])

    def step(self, i: int, x: Tensor, x0: Tensor, noise: Tensor | None = None) -> Tensor:
        if not self.past or self.past[-1][0] != i - 1:
            self.past = []
        else:
            x = self.corrected(i, x0)
        self.past = [*self.past[-1:], (i, x, x0)]
        return self.predicted(i, x, x0)

    def way(self, i: int) -> tuple[float, float, float]:
        """Of step i: its length h in log((1 - s) / s), exp(-h) - 1, and where the step before
        began, in h."""
        before, now, after = (self.log_ratio(j) for j in (i - 1, i, i + 1))
        h = after - now
        return h, expm1(-h), (before - now) / h

    def log_ratio(self, i: int) -> float:
        s = self.levels[i]
        return inf if s == 0 else log((1 - s) / s)

    def towards(self, i: int, x: Tensor, data: Tensor) -> Tensor:
        now, after = self.levels[i : i + 2]
        return after / now * x - (1 - after) * self.way(i)[1] * data

    def predicted(self, i: int, x: Tensor, m0: Tensor) -> Tensor:
        if len(self.past) > 1 and i + 1 < len(self):
            m0 = m0 + (self.past[0][2] - m0) / (2 * self.way(i)[2])
        return self.towards(i, x, m0)

    def corrected(self, i: int, m: Tensor) -> Tensor:
        """The x of step i, from that of the step before, with the data m that it led to."""
        _, x, m0 = self.past[-1]
        h, B, r = self.way(i - 1)
        c2, data = 0.5, m0
        if len(self.past) > 1:
            p = B / -h - 1
            b1, b2 = p / B, 2 * (p / -h - 0.5) / B  # c1 + c2 = b1, r c1 + c2 = b2
            c1 = (b2 - b1) / (r - 1)
            c2, data = b1 - c1, m0 + c1 / r * (self.past[0][2] - m0)
        return self.towards(i - 1, x, data + c2 * (m - m0))
