"""Samplers: they turn a network's outputs, step by step, into latents. Neither guidance nor stages
concern them.

A sampler has `len(sampler)` steps, and adds noise in them if it is `stochastic`. It begins with x =
`start(noise)`. At step i the network is shown `network_input(i, x)` at `timestep(i)`; `x0` turns
its output into data, and `step` leads to the next x. `noised` is the x of step i that data and
noise make. `share(i)` is the paper's t / T: the part of the way to pure noise at which step i
stands (Eq. 24). All noise is standard normal, shaped as x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Union

import numpy as np
from torch import Tensor

from .fields import PART, Range, UserError, check, check_fields

TRAIN_STEPS = 1000  # timesteps of every DDIM model here
STEPS = Range(1, TRAIN_STEPS)


@dataclass(frozen=True)
class DDIMConfig:
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Literal["sqrt_linear", "linear"] = "sqrt_linear"  # of betas, or of their roots
    zero_terminal_snr: bool = False  # the last timestep holds no data (Lin et al. 2024); needs "v"
    prediction: Literal["noise", "v"] = "noise"  # what the network predicts
    data_scale: float = 1.0  # VideoCrafter2's `scale_arr`: data is scaled from 1 at t = 0 down to
    data_scale_steps: int = 400  # this at this timestep, and by it from there on
    last_scale_stays: bool = False  # the last step ends at its own timestep's scale, not at 1
    more_steps: bool = False  # a number of steps that does not divide 1000 takes some more
    spacing: Literal["leading", "trailing", "linspace"] = "leading"  # see `timesteps`
    first_timestep: Annotated[int, Range(0, 1)] = 1  # of spacing "leading"
    ends_clean: bool = False  # the last step ends at alpha 1; at timestep 0 a little noise is left
    consistency: int = 0  # evenly spaced timesteps that a consistency model knows; 0: it is none

    def __post_init__(self) -> None:
        check_fields(self)
        if self.zero_terminal_snr and self.prediction != "v":
            raise UserError("zero_terminal_snr needs prediction 'v': noise does not tell the data "
                            "where there is none")

    def sampler(self, steps: int, eta: float) -> DDIM:
        return Consistency(self, steps, eta) if self.consistency else DDIM(self, steps, eta)

    def alphas_cumprod(self) -> np.ndarray:
        """Share of the data's variance at each of TRAIN_STEPS timesteps, float64."""
        if self.beta_schedule == "linear":
            betas = np.linspace(self.beta_start, self.beta_end, TRAIN_STEPS)
        else:
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, TRAIN_STEPS) ** 2
        a = np.cumprod(1 - betas)
        if not self.zero_terminal_snr:
            return a
        r = np.sqrt(a)
        return ((r - r[-1]) * r[0] / (r[0] - r[-1])) ** 2  # the first value stays, the last is 0

    def data_scales(self) -> np.ndarray:
        """Factor of the data at each timestep."""
        falling = np.linspace(1.0, self.data_scale, self.data_scale_steps)
        return np.append(falling, np.full(TRAIN_STEPS - self.data_scale_steps, self.data_scale))

    def timesteps(self, steps: int) -> list[int]:
        """Timesteps of so many steps, in the order in which they are taken.

        "leading": 1, 1 + c, .. (or 0, c, ..) with c = 1000 // steps; with `more_steps` up to 999,
        as in VideoCrafter: 30 steps become 31, 60 become 63. "trailing": 999, 999 - c, .. with c =
        1000 / steps, rounded (Lin et al. 2024, arXiv 2305.08891). "linspace": evenly from 0 to 999.
        """
        if self.spacing == "linspace":
            return np.linspace(0, TRAIN_STEPS - 1, steps).round().astype(int).tolist()[::-1]
        if self.spacing == "trailing":
            return [round(TRAIN_STEPS - i * TRAIN_STEPS / steps) - 1 for i in range(steps)]
        if self.consistency:  # evenly among those it knows, from the last one down
            known = range(TRAIN_STEPS - 1, 0, -(TRAIN_STEPS // self.consistency))
            return list(known[:: self.consistency // steps][:steps])
        timesteps = list(range(self.first_timestep, TRAIN_STEPS, TRAIN_STEPS // steps))
        return (timesteps if self.more_steps else timesteps[:steps])[::-1]


class DDIM:
    """Song et al. 2020 (arXiv 2010.02502), on x_t = alpha_t x0 + sigma_t noise.

    steps: network evaluations, at `DDIMConfig.timesteps`. Each step leads to the next timestep, the
    last one to 0. eta: share of fresh noise, 0 (none) to 1. UserError if out of range.
    """

    def __init__(self, config: DDIMConfig, steps: int = 50, eta: float = 1.0) -> None:
        check("steps", steps, int, STEPS)
        check("eta", eta, float, PART)
        self.config, self.stochastic = config, eta > 0
        self.timesteps = config.timesteps(steps)
        a, scale = config.alphas_cumprod(), config.data_scales()
        now = np.array(self.timesteps)
        before = np.append(now[1:], 0)
        if config.spacing == "linspace":  # steps are one length, and miss the timesteps a little
            before = (now - TRAIN_STEPS // steps).clip(0)
        a, a_prev, self.scale = a[now], a[before], scale[now]
        if config.ends_clean:
            a_prev[-1] = 1.0
        self.alpha, self.sigma = np.sqrt(a) * self.scale, np.sqrt(1 - a)
        end = self.scale[-1] if config.last_scale_stays else scale[0]
        self.alpha_prev = np.sqrt(a_prev) * np.append(self.scale[1:], end)
        self.fresh = eta * np.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))
        carried = 1 - a_prev - self.fresh**2  # variance of the noise that is kept
        self.sigma_prev = np.sqrt(np.maximum(carried, 0))  # at zero, rounding may go below it

    def __len__(self) -> int:
        return len(self.timesteps)

    def timestep(self, i: int) -> float:
        return self.timesteps[i]

    def share(self, i: int) -> float:
        return self.timesteps[i] / TRAIN_STEPS

    def start(self, noise: Tensor) -> Tensor:
        return noise

    def network_input(self, i: int, x: Tensor) -> Tensor:
        return x

    def x0(self, i: int, x: Tensor, output: Tensor) -> Tensor:
        if self.config.prediction == "v":  # v = a noise - sigma (scale x0), alpha being a * scale
            scale = float(self.scale[i])
            return (float(self.alpha[i]) / scale * x - float(self.sigma[i]) * output) / scale
        return (x - float(self.sigma[i]) * output) / float(self.alpha[i])

    def noised(self, i: int, x0: Tensor, noise: Tensor) -> Tensor:
        return float(self.alpha[i]) * x0 + float(self.sigma[i]) * noise

    def step(self, i: int, x: Tensor, x0: Tensor, noise: Tensor | None) -> Tensor:
        carried = (x - float(self.alpha[i]) * x0) / float(self.sigma[i])
        x = float(self.alpha_prev[i]) * x0 + float(self.sigma_prev[i]) * carried
        return x if noise is None else x + float(self.fresh[i]) * noise


class Consistency(DDIM):
    """Multistep sampling of a latent consistency model (Luo et al. 2023, arXiv 2310.04378) as
    T2V-Turbo does it: each step takes the predicted data to the next timestep by fresh noise alone,
    the last one returns it.

    steps: network evaluations, at most the timesteps that the model was trained at. UserError if
    out of range.
    """

    def __init__(self, config: DDIMConfig, steps: int = 4, eta: float = 1.0) -> None:
        check_consistency(steps, config.consistency, eta)
        super().__init__(config, steps, eta)
        after = np.append(config.alphas_cumprod()[self.timesteps[1:]], 1.0)
        self.alpha_prev, self.fresh = np.sqrt(after), np.sqrt(1 - after)
        self.sigma_prev = np.zeros(len(after))

    def x0(self, i: int, x: Tensor, output: Tensor) -> Tensor:
        t = 10 * self.timesteps[i]
        share = 0.25 / (t**2 + 0.25)  # of x itself, for data of deviation 0.5: 1 at timestep 0
        return t / (t**2 + 0.25) ** 0.5 * super().x0(i, x, output) + share * x


def check_consistency(steps: int, most: int, eta: float) -> None:
    """UserError for settings that a consistency model, trained at `most` noise levels, has not."""
    check("steps", steps, int, Range(1, most))
    if eta != 1:
        raise UserError(f"eta={eta}; a consistency model's sampler takes fresh noise alone: use 1")


@dataclass(frozen=True)
class EulerConfig:
    """Noise levels from sigma_max down to sigma_min on the curve of Karras et al. 2022 (arXiv
    2206.00364, Eq. 5)."""

    sigma_min: float = 0.002
    sigma_max: float = 700.0
    rho: float = 7.0
    consistency: int = 0  # noise levels on that curve that a consistency model knows; 0: it is none

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
    """Euler's method on dx/dsigma = (x - x0) / sigma, with x = x0 + sigma noise, for a network that
    predicts v.

    steps: network evaluations, one at each noise level; the last step leads to 0. UserError if out
    of range.
    """

    stochastic = False

    def __init__(self, config: EulerConfig, steps: int = 25) -> None:
        check("steps", steps, int, STEPS)
        self.sigmas = np.append(config.levels(steps), 0.0)  # noise levels of the steps, and 0

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
    does it with Stable Video Diffusion: each step takes the predicted data to the next noise level
    by fresh noise alone."""

    stochastic = True

    def __init__(self, config: EulerConfig, steps: int = 4, eta: float = 1.0) -> None:
        check_consistency(steps, config.consistency, eta)
        known = config.levels(config.consistency)
        self.sigmas = np.append(known[:: len(known) // steps][:steps], 0.0)

    def step(self, i: int, x: Tensor, x0: Tensor, noise: Tensor | None) -> Tensor:
        assert noise is not None
        return x0 + float(self.sigmas[i + 1]) * noise


Sampler = Union[DDIM, Euler]  # noqa: UP007  or whatever has their methods
