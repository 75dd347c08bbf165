"""DiffuseSlide (Hwang et al. 2025, arXiv 2506.01454), the other published way to more frames that
needs no training.

Each longer video begins as the finished base video with frames interpolated between its key frames,
noised to a middle level and denoised from there in sliding windows of t0 frames. All numbers are of
its authors' code, which is for Stable Video Diffusion; where they depend on its sizes, they are
shares here. That code interpolates spherically, the paper says linearly. Without re-injection of
noise it is SDEdit (Meng et al. 2022, arXiv 2108.01073) from interpolated frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from math import atan2

import torch
from torch import Tensor

from ..cascade import Cascade, Hook, by_stage, keep, sample_cascade
from ..samplers import Sampler
from .predictions import lines

LEVEL = 1.2732  # sigma / alpha at which longer videos begin: that of step 17 of 25
FIRST, AGAIN = 3, 5  # the first steps that are done again, and how often
PULL = 0.0775  # share of the way to the base video's latents: 40000 / (14 * 4 * 72 * 128)
STRIDES = {2: 2 / 14}  # of windows, as a share of their length, by frames for each key frame
STRIDE = 8 / 14  # at 4x, and beyond


def sample_diffuseslide(
    network: Callable[..., Tensor], sampler: Sampler, cascade: Cascade,
    noise: Callable[[int], Tensor], bus: None, hook: Hook = keep, *, again: int = AGAIN,
    see: Callable[[Tensor, Sequence[int]], Sequence[Callable[..., Tensor]]] | None = None,
) -> list[Tensor]:
    """As `sample_cascade`; no stage depends on another longer one. hook: of the base video alone.

    again: how often noise is re-injected. see: (latents b f c h w, some of their frames) -> for
    each of these the network as shown it in place of the image; None: it takes none.
    """

    def of_stage(s: int, step: int) -> Tensor:
        return by_stage(noise(step), cascade.scales)[s]

    alone = Cascade(cascade.key_frames, ())
    (base,) = sample_cascade(network, sampler, alone, lambda i: of_stage(0, i), None, hook)

    def longer(s: int) -> Tensor:
        n, steps = cascade.scale_of(s), count(len(sampler))  # of noise that nothing else takes
        x0 = spherical(n, base)
        spans = windows(cascade.key_frames, n)
        starts = [start for start, _ in spans]
        seeing = [network] * len(spans) if see is None else see(x0, starts)

        def step(i: int, x: Tensor) -> Tensor:
            shown, total = sampler.network_input(i, x), torch.zeros_like(x)
            times = x.new_zeros(x.shape[1])
            for (start, end), run in zip(spans, seeing):
                total[:, start:end] += run(i, s, shown[:, start:end], None)
                times[start:end] += 1
            x0 = sampler.x0(i, x, total / times.view(-1, 1, 1, 1))
            x0[:, ::n] = torch.lerp(x0[:, ::n], base, PULL)
            fresh = of_stage(s, next(steps)) if sampler.stochastic else None
            return sampler.step(i, x, x0, fresh)

        first = first_step(sampler)
        x = sampler.noised(first, x0, of_stage(s, next(steps)))
        for i in range(first, len(sampler)):
            x = step(i, x)
            for _ in range(again if i in repeated(sampler) else 0):
                x = step(i, noised_back(sampler, i, x, of_stage(s, next(steps))))
        return x

    return [base, *(longer(s) for s in range(1, cascade.stages))]


def calls(sampler: Sampler, cascade: Cascade, again: int = AGAIN) -> int:
    """How often the network runs, each time on t0 frames at most."""
    steps = len(sampler) - first_step(sampler) + again * len(repeated(sampler))
    scales = [cascade.scale_of(s) for s in range(1, cascade.stages)]
    return len(sampler) + steps * sum(len(windows(cascade.key_frames, n)) for n in scales)


def spherical(n: int, y: Tensor) -> Tensor:
    """Frames between key frames by spherical interpolation of whole frames; constant after the
    last. y: b k c h w, returns b n*k c h w.

    Where the angle vanishes that is a line; the authors' code has zeros there.
    """
    out, unit = lines(n, y), y / y.flatten(2).norm(dim=2).clamp(min=1e-12)[:, :, None, None, None]
    a, b = y[:, :-1], y[:, 1:]
    angle = (unit[:, :-1] * unit[:, 1:]).sum((2, 3, 4), keepdim=True).clamp(-1, 1).acos()
    for j in range(1, n):
        low, high = ((share * angle).sin() for share in (1 - j / n, j / n))
        between = (low * a + high * b) / angle.sin()
        inserted = slice(j, (y.shape[1] - 1) * n, n)
        out[:, inserted] = torch.where(angle.sin() > 1e-4, between, out[:, inserted])
    return out


def windows(key_frames: int, n: int) -> list[tuple[int, int]]:
    """Start and end of windows of t0 = key_frames frames over n*t0.

    Each begins at a key frame. If the last one ends early, one more begins a key frame after it,
    and is shorter.
    """
    total = n * key_frames
    share = STRIDES.get(n, STRIDE) * key_frames
    stride = min(key_frames, n * max(1, round(share / n)))
    starts = list(range(0, total - key_frames + 1, stride))
    if starts[-1] + key_frames < total:
        starts.append(max(starts[-1] + n, total - key_frames))
    return [(start, min(start + key_frames, total)) for start in starts]


def level(sampler: Sampler, i: int) -> tuple[float, float]:
    """Shares of data and of noise in the x of step i."""
    one, zero = torch.eye(2, dtype=torch.float64)[0]
    return sampler.noised(i, one, zero).item(), sampler.noised(i, zero, one).item()


def first_step(sampler: Sampler) -> int:
    """The step whose noise level is next to LEVEL."""
    wanted = atan2(LEVEL, 1)

    def off(i: int) -> float:
        alpha, sigma = level(sampler, i)
        return abs(atan2(sigma, alpha) - wanted)

    return min(range(len(sampler)), key=off)


def repeated(sampler: Sampler) -> range:
    """The steps that are done again: the last one leads to no level from which to go back."""
    first = first_step(sampler)
    return range(first, min(first + FIRST, len(sampler) - 1))


def noised_back(sampler: Sampler, i: int, x: Tensor, noise: Tensor) -> Tensor:
    """The x of step i + 1 with noise added up to the level of step i: with alpha 1, of deviation
    sqrt(sigma_i^2 - sigma_{i+1}^2)."""
    (alpha, sigma), (alpha_next, sigma_next) = level(sampler, i), level(sampler, i + 1)
    r = alpha / alpha_next
    return r * x + max(0.0, sigma**2 - (r * sigma_next) ** 2) ** 0.5 * noise
