"""The samplers: what turns a network's outputs, step by step, into latents. They know neither
guidance nor stages.

A sampler walks over `len(sampler)` steps. At step i the network is shown `network_input(i, x)` at
`timestep(i)`; `x0` reads its output and `step` moves on; `noised` makes x of that step from data
and noise. `share(i)` is the paper's t / T: how much of the way to pure noise step i stands (Eq.
24).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from .fields import UserError

TRAIN_STEPS = 1000  # timesteps of every DDIM model here
SPACINGS = {
    "leading": "1, 1 + c, 1 + 2c, .. with c = 1000 // steps",
    "trailing": "999, 999 - c, .. with c = 1000 / steps, rounded (Lin et al. 2024)",
    "linspace": "evenly from 0 to 999, rounded",
}


class Sampler(Protocol):
    """What `cascade.sample_cascade` needs of a sampler, see above."""

    stochastic: bool  # whether a step adds noise

    def __len__(self) -> int: ...
    def timestep(self, i: int) -> float: ...
    def share(self, i: int) -> float: ...
    def start(self, noise: Tensor) -> Tensor: ...
    def network_input(self, i: int, x: Tensor) -> Tensor: ...
    def x0(self, i: int, x: Tensor, output: Tensor) -> Tensor: ...
    def step(self, i: int, x: Tensor, x0: Tensor, noise: Tensor | None) -> Tensor: ...
    def noised(self, i: int, x0: Tensor, noise: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class DDIMConfig:
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "sqrt_linear"  # betas linear in their square root ("sqrt_linear") or themselves ("linear")
    zero_terminal_snr: bool = False  # the last timestep holds no data (Lin et al. 2024, arXiv 2305.08891); needs "v"
    prediction: str = "noise"  # what the network predicts: "noise" or "v"
    data_scale: float = 1.0  # VideoCrafter2's `scale_arr`: data is scaled from 1 at t = 0 down to this
    data_scale_steps: int = 400  # at this timestep, and stays so
    last_scale_stays: bool = False  # the last step leads to data scaled as at its own timestep, not at 0
    more_steps: bool = False  # a number of steps that does not divide 1000 takes some more (VideoCrafter)
    spacing: str = "leading"  # of timesteps, one of SPACINGS
    ends_clean: bool = False  # the last step leads to alpha 1, not to that of timestep 0, which keeps a little noise
    consistency: int = 0  # of a consistency model: evenly spaced timesteps that it was trained at; 0: it is none

    def __post_init__(self) -> None:
        if self.beta_schedule not in ("sqrt_linear", "linear"):
            raise UserError(f"beta_schedule={self.beta_schedule!r}; use 'sqrt_linear' or 'linear'")
        if self.prediction not in ("noise", "v"):
            raise UserError(f"prediction={self.prediction!r}; use 'noise' or 'v'")
        if self.zero_terminal_snr and self.prediction != "v":
            raise UserError("zero_terminal_snr with predicted noise, which says nothing of the data there; use 'v'")
        if self.spacing not in SPACINGS:
            raise UserError(f"spacing={self.spacing!r}; use one of {', '.join(SPACINGS)}")

    def sampler(self, steps: int, eta: float) -> DDIM:
        return Consistency(self, steps, eta) if self.consistency else DDIM(self, steps, eta)

    def alphas_cumprod(self) -> np.ndarray:
        """Share of the data's variance left at each of TRAIN_STEPS timesteps, float64."""
        if self.beta_schedule == "linear":
            betas = np.linspace(self.beta_start, self.beta_end, TRAIN_STEPS)
        else:
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, TRAIN_STEPS) ** 2
        a = np.cumprod(1 - betas)
        if not self.zero_terminal_snr:
            return a
        r = np.sqrt(a)
        return ((r - r[-1]) * r[0] / (r[0] - r[-1])) ** 2  # from where it was at timestep 0 to zero at the last one

    def data_scales(self) -> np.ndarray:
        """Factor of the data at each timestep."""
        falling = np.linspace(1.0, self.data_scale, self.data_scale_steps)
        return np.append(falling, np.full(TRAIN_STEPS - self.data_scale_steps, self.data_scale))

    def timesteps(self, steps: int) -> list[int]:
        """Timesteps of as many steps, the last one first. With `more_steps` leading ones go on up
        to 999, as upstream: of 30 steps it makes 31, of 60 it makes 63."""
        if self.spacing == "linspace":
            return np.linspace(0, TRAIN_STEPS - 1, steps).round().astype(int).tolist()[::-1]
        if self.spacing == "trailing":
            return [round(TRAIN_STEPS - i * TRAIN_STEPS / steps) - 1 for i in range(steps)]
        if self.consistency:  # every few of those it knows, from the last one down
            known = range(TRAIN_STEPS - 1, 0, -(TRAIN_STEPS // self.consistency))
            return list(known[:: self.consistency // steps][:steps])
        timesteps = [t + 1 for t in range(0, TRAIN_STEPS, TRAIN_STEPS // steps) if t + 1 < TRAIN_STEPS]
        return (timesteps if self.more_steps else timesteps[:steps])[::-1]


class DDIM:
    """Song et al. 2020 (arXiv 2010.02502), on x_t = alpha_t x0 + sigma_t noise.

    steps: network evaluations; `DDIMConfig.timesteps` says at which timesteps, and `len` how many
    those are. A step leads to the next of them, the last one to 0. eta: share of fresh noise, 0
    (none) to 1. UserError if out of range.
    """

    def __init__(self, config: DDIMConfig, steps: int = 50, eta: float = 1.0) -> None:
        if not 1 <= steps <= TRAIN_STEPS:
            raise UserError(f"steps={steps}; use 1 to {TRAIN_STEPS}")
        if not 0 <= eta <= 1:
            raise UserError(f"eta={eta} is not in [0, 1]")
        self.config, self.stochastic = config, eta > 0
        self.timesteps = config.timesteps(steps)
        a, scale = config.alphas_cumprod(), config.data_scales()
        now = np.array(self.timesteps)
        before = np.append(now[1:], 0)
        if config.spacing == "linspace":  # there a step leads a fixed way down, not quite to the next timestep
            before = (now - TRAIN_STEPS // steps).clip(0)
        a, a_prev, self.scale = a[now], a[before], scale[now]
        if config.ends_clean:
            a_prev[-1] = 1.0
        self.alpha, self.sigma = np.sqrt(a) * self.scale, np.sqrt(1 - a)
        end = self.scale[-1] if config.last_scale_stays else scale[0]
        self.alpha_prev = np.sqrt(a_prev) * np.append(self.scale[1:], end)
        self.fresh = eta * np.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))
        carried = np.maximum(1 - a_prev - self.fresh**2, 0)  # without signal nothing is, and rounding goes below
        self.sigma_prev = np.sqrt(carried)  # of the noise that is carried on

    def __len__(self) -> int:
        return len(self.timesteps)

    def timestep(self, i: int) -> float:
        return self.timesteps[i]

    def share(self, i: int) -> float:
        return self.timesteps[i] / TRAIN_STEPS

    def start(self, noise: Tensor) -> Tensor:
        """The first x, of standard normal noise."""
        return noise

    def network_input(self, i: int, x: Tensor) -> Tensor:
        """What the network is shown of x at step i."""
        return x

    def x0(self, i: int, x: Tensor, output: Tensor) -> Tensor:
        """The data that the network's output at step i stands for."""
        if self.config.prediction == "v":  # v = a noise - sigma (scale x0), alpha being a * scale
            scale = float(self.scale[i])
            return (float(self.alpha[i]) / scale * x - float(self.sigma[i]) * output) / scale
        return (x - float(self.sigma[i]) * output) / float(self.alpha[i])

    def noised(self, i: int, x0: Tensor, noise: Tensor) -> Tensor:
        """x of step i, of data and standard normal noise."""
        return float(self.alpha[i]) * x0 + float(self.sigma[i]) * noise

    def step(self, i: int, x: Tensor, x0: Tensor, noise: Tensor | None) -> Tensor:
        """x of the next step. noise: standard normal, shaped as x; None where the sampler is not
        stochastic."""
        carried = (x - float(self.alpha[i]) * x0) / float(self.sigma[i])
        x = float(self.alpha_prev[i]) * x0 + float(self.sigma_prev[i]) * carried
        return x if noise is None else x + float(self.fresh[i]) * noise


class Consistency(DDIM):
    """Multistep sampling of a latent consistency model (Luo et al. 2023, arXiv 2310.04378), as
    T2V-Turbo samples: each step leads to data, and from there to the next timestep by fresh noise
    alone; the last one stays at data.

    steps: network evaluations, up to the timesteps that the model was trained at. UserError if out
    of range.
    """

    def __init__(self, config: DDIMConfig, steps: int = 4, eta: float = 1.0) -> None:
        check_consistency(steps, config.consistency, eta)
        super().__init__(config, steps, eta)
        after = np.append(config.alphas_cumprod()[self.timesteps[1:]], 1.0)
        self.alpha_prev, self.fresh = np.sqrt(after), np.sqrt(1 - after)
        self.sigma_prev = np.zeros(len(after))

    def x0(self, i: int, x: Tensor, output: Tensor) -> Tensor:
        t = 10 * self.timesteps[i]  # against the data's deviation, taken as 0.5: at 0 the data would be x itself
        share = 0.25 / (t**2 + 0.25)
        return t / (t**2 + 0.25) ** 0.5 * super().x0(i, x, output) + share * x


def check_consistency(steps: int, most: int, eta: float) -> None:
    """UserError for settings that a consistency model's sampler does not have."""
    if not 1 <= steps <= most:
        raise UserError(f"steps={steps}; this consistency model was trained at {most} noise levels: use 1 to {most}")
    if eta != 1:
        raise UserError(f"eta={eta}; a consistency model's sampler takes fresh noise alone: use 1")


@dataclass(frozen=True)
class EulerConfig:
    """Noise levels from sigma_max down to sigma_min on the curve of Karras et al. 2022 (arXiv
    2206.00364, Eq. 5)."""

    sigma_min: float = 0.002
    sigma_max: float = 700.0
    rho: float = 7.0
    consistency: int = 0  # of a consistency model: noise levels on that curve it was trained at; 0: it is none

    def sampler(self, steps: int, eta: float) -> Euler:
        if self.consistency:
            return ConsistencyEuler(self, steps, eta)
        if eta != 0:
            raise UserError(f"eta={eta}; this model's sampler adds no noise: use 0")
        return Euler(self, steps)

    def levels(self, n: int) -> np.ndarray:
        """n noise levels, the highest first."""
        ends = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return np.linspace(*ends, n) ** self.rho


class Euler:
    """Euler's method on dx/dsigma = (x - x0) / sigma, x = x0 + sigma noise, for a network that
    predicts v.

    steps: network evaluations, one at each noise level; the last step leads to sigma = 0. UserError
    if out of range.
    """

    stochastic = False
    sigmas: np.ndarray  # of each step, and 0

    def __init__(self, config: EulerConfig, steps: int = 25) -> None:
        if not 1 <= steps <= TRAIN_STEPS:
            raise UserError(f"steps={steps}; use 1 to {TRAIN_STEPS}")
        self.sigmas = np.append(config.levels(steps), 0.0)

    def __len__(self) -> int:
        return len(self.sigmas) - 1

    def timestep(self, i: int) -> float:
        return 0.25 * float(np.log(self.sigmas[i]))

    def share(self, i: int) -> float:
        return (len(self) - i) / len(self)

    def start(self, noise: Tensor) -> Tensor:
        return noise * float(np.sqrt(self.sigmas[0] ** 2 + 1))

    def network_input(self, i: int, x: Tensor) -> Tensor:
        return x / float(np.sqrt(self.sigmas[i] ** 2 + 1))

    def x0(self, i: int, x: Tensor, output: Tensor) -> Tensor:
        variance = float(self.sigmas[i]) ** 2
        return x / (variance + 1) - output * (float(self.sigmas[i]) / (variance + 1) ** 0.5)

    def noised(self, i: int, x0: Tensor, noise: Tensor) -> Tensor:
        return x0 + float(self.sigmas[i]) * noise

    def step(self, i: int, x: Tensor, x0: Tensor, noise: Tensor | None) -> Tensor:
        slope = (x - x0) / float(self.sigmas[i])
        return x + slope * float(self.sigmas[i + 1] - self.sigmas[i])


class ConsistencyEuler(Euler):
    """Multistep sampling of a consistency model (Song et al. 2023, arXiv 2303.01469) as AnimateLCM
    does it with Stable Video Diffusion: each step leads to data, and from there to the next noise
    level by fresh noise alone."""

    stochastic = True

    def __init__(self, config: EulerConfig, steps: int = 4, eta: float = 1.0) -> None:
        check_consistency(steps, config.consistency, eta)
        known = config.levels(config.consistency)
        self.sigmas = np.append(known[:: len(known) // steps][:steps], 0.0)

    def step(self, i: int, x: Tensor, x0: Tensor, noise: Tensor | None) -> Tensor:
        assert noise is not None
        return x0 + float(self.sigmas[i + 1]) * noise
