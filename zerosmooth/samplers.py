"""The samplers: what turns a network's outputs, step by step, into latents. They know neither guidance nor stages.

A sampler walks over `len(sampler)` steps. At step i the network is asked at `timestep(i)`; `x0` reads its output and
`step` moves on. `share(i)` is the paper's t / T: how much of the way to pure noise step i stands (Eq. 24).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

TRAIN_STEPS = 1000  # timesteps of every DDIM model here


@dataclass(frozen=True)
class DDIMConfig:
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "sqrt_linear"  # betas linear in their square root ("sqrt_linear") or themselves ("linear")
    prediction: str = "noise"  # what the network predicts: "noise" or "v"
    data_scale: float = 1.0  # VideoCrafter2's `scale_arr`: data is scaled from 1 at t = 0 down to this
    data_scale_steps: int = 400  # at this timestep, and stays so

    def __post_init__(self) -> None:
        if self.beta_schedule not in ("sqrt_linear", "linear"):
            raise ValueError(f"beta_schedule={self.beta_schedule!r}; use 'sqrt_linear' or 'linear'")
        if self.prediction not in ("noise", "v"):
            raise ValueError(f"prediction={self.prediction!r}; use 'noise' or 'v'")

    def alphas_cumprod(self) -> np.ndarray:
        """Share of the data's variance left at each of TRAIN_STEPS timesteps, float64."""
        if self.beta_schedule == "linear":
            betas = np.linspace(self.beta_start, self.beta_end, TRAIN_STEPS)
        else:
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, TRAIN_STEPS) ** 2
        return np.cumprod(1 - betas)

    def data_scales(self) -> np.ndarray:
        """Factor of the data at each timestep."""
        falling = np.linspace(1.0, self.data_scale, self.data_scale_steps)
        return np.append(falling, np.full(TRAIN_STEPS - self.data_scale_steps, self.data_scale))


class DDIM:
    """Song et al. 2020 (arXiv 2010.02502), on x_t = alpha_t x0 + sigma_t noise.

    steps: network evaluations; timesteps are 1, 1+c, 1+2c, .. with c = 1000 // steps, as upstream, so a number that
    does not divide 1000 takes some more: 30 takes 31, 60 takes 63, and `len` tells. eta: share of fresh noise, 0 (none)
    to 1. ValueError if out of range.
    """

    def __init__(self, config: DDIMConfig, steps: int = 50, eta: float = 1.0) -> None:
        if not 1 <= steps <= TRAIN_STEPS:
            raise ValueError(f"steps={steps}; use 1 to {TRAIN_STEPS}")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta={eta} is not in [0, 1]")
        self.config, self.stochastic = config, eta > 0
        stride = TRAIN_STEPS // steps
        self.timesteps = [t + 1 for t in range(0, TRAIN_STEPS, stride) if t + 1 < TRAIN_STEPS][::-1]
        a, scale = config.alphas_cumprod(), config.data_scales()
        now = np.array(self.timesteps)
        before = np.append(now[1:], 0)  # the timestep that a step leads to; the last one leads to 0
        self.alpha, self.sigma = np.sqrt(a[now]) * scale[now], np.sqrt(1 - a[now])
        self.alpha_prev = np.sqrt(a[before]) * scale[before]
        self.fresh = eta * np.sqrt((1 - a[before]) / (1 - a[now]) * (1 - a[now] / a[before]))
        self.sigma_prev = np.sqrt(1 - a[before] - self.fresh**2)  # of the noise that is carried on

    def __len__(self) -> int:
        return len(self.timesteps)

    def timestep(self, i: int) -> float:
        return self.timesteps[i]

    def share(self, i: int) -> float:
        return self.timesteps[i] / TRAIN_STEPS

    def start(self, noise: Tensor) -> Tensor:
        """The first x, of standard normal noise."""
        return noise

    def x0(self, i: int, x: Tensor, output: Tensor) -> Tensor:
        """The data that the network's output at step i stands for."""
        if self.config.prediction == "v":  # v = alpha noise - sigma x0
            return float(self.alpha[i]) * x - float(self.sigma[i]) * output
        return (x - float(self.sigma[i]) * output) / float(self.alpha[i])

    def step(self, i: int, x: Tensor, x0: Tensor, noise: Tensor | None) -> Tensor:
        """x of the next step. noise: standard normal, shaped as x; None where the sampler is not stochastic."""
        carried = (x - float(self.alpha[i]) * x0) / float(self.sigma[i])
        x = float(self.alpha_prev[i]) * x0 + float(self.sigma_prev[i]) * carried
        return x if noise is None else x + float(self.fresh[i]) * noise
