"""The self-cascade: one network, several frame rates, one denoising step at a time (Sec. 4.1, 4.3).

`sample_cascade` is the paper's algorithm. Baselines, the paper's optional colour correction and our
additions are in `extensions/`. They reach the loop through its `hook`, a wrapped sampler, or other
noise, latents or steps to begin with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np
import torch
from torch import Tensor

from .bus import Correction, HiddenStateBus, Stage
from .samplers import Sampler


@dataclass(frozen=True)
class Cascade:
    """Stage s denoises key_frames * scales[0] * .. * scales[s-1] frames."""

    key_frames: int = 16  # t0, frames of stage 0: at most what the network was trained on
    scales: tuple[int, ...] = (2, 2)  # n of stages 1, 2, ..: frames for one of the stage before
    strength: float = 0.8  # the highest w_t, 0 to 1 (Eq. 24)
    strength_schedule: str = "linear"  # "linear": w_t falls with t / T (Eq. 24); or "constant"
    overlap: int | None = None  # frames that two attention windows share; None: half a window
    correction: Correction = Correction()

    @property
    def stages(self) -> int:
        return len(self.scales) + 1

    def scale_of(self, stage: int) -> int:
        """Frames of a stage for one of stage 0: the product of the scales up to it."""
        return prod(self.scales[:stage])

    def frames_of(self, stage: int) -> int:
        return self.key_frames * self.scale_of(stage)

    def strength_at(self, share: float) -> float:
        """w_t at t / T = share (Eq. 24)."""
        return self.strength * (share if self.strength_schedule == "linear" else 1.0)

    def bus(self, device: str | None = None) -> HiddenStateBus:
        """A bus for a run. device: where hidden states wait; None: where they are made."""
        return HiddenStateBus(self.key_frames, self.scales, self.overlap, self.correction, device)


Network = Callable[[int, Tensor, "Stage | None"], Tensor]  # (stage index s, x, stage) -> output
Hook = Callable[[int, list[Tensor]], list[Tensor]]  # (step, x0 of all stages) -> x0 to go on with


def keep(step: int, x0s: list[Tensor]) -> list[Tensor]:
    """The hook of the paper's method: predictions of x0 stay as they are."""
    return x0s


def sample_cascade(
    network: Callable[[int, int, Tensor, Stage | None], Tensor],
    sampler: Sampler,
    cascade: Cascade,
    noise: Callable[[int], Tensor],
    bus: HiddenStateBus | None,
    hook: Hook = keep,
    xs: list[Tensor] | None = None,
    steps: range | None = None,
) -> list[Tensor]:
    """Denoise all stages together, from noise to latents. Returns b t_s c h w of stage s = 0, 1, ..

    network: (step, stage index s, x from `sampler.network_input`, stage) -> the guided output.
    noise: step -> standard normal noise of the last stage, b t c h w; step -1 is the start.
    bus: `cascade.bus()`; None: every stage is the plain network, over all of its frames.
    hook: (step, predicted x0 of all stages) -> the x0 with which the sampler goes on.
    xs, steps: each stage's latents to begin with, and the steps to take; None: noise, and all.
    """
    xs = [sampler.start(e) for e in by_stage(noise(-1), cascade.scales)] if xs is None else xs
    for i in range(len(sampler)) if steps is None else steps:
        w = cascade.strength_at(sampler.share(i))  # w_t (Eq. 24)
        inputs = [sampler.network_input(i, x) for x in xs]
        outputs = cascade_step(partial(network, i), inputs, bus, i, w)
        x0s = hook(i, [sampler.x0(i, x, y) for x, y in zip(xs, outputs)])
        fresh = by_stage(noise(i), cascade.scales) if sampler.stochastic else [None] * len(xs)
        xs = [sampler.step(i, x, x0, e) for x, x0, e in zip(xs, x0s, fresh)]
    return xs


def cascade_step(network: Network, xs: Sequence[Tensor], bus: HiddenStateBus | None, step: int,
                 strength: float) -> list[Tensor]:
    """The network's output for all stages at one denoising step. xs: b t_s c h w of stage s.

    The stages run in order; each takes from the bus, module by module, what the one before left.
    ValueError if the bus is for another number of stages.
    """
    if bus is None:
        return [network(s, x, None) for s, x in enumerate(xs)]
    if len(xs) != len(bus.scales) + 1:
        raise ValueError(f"{len(xs)} stages on a bus of {len(bus.scales) + 1}")
    try:
        return [network(s, x, bus.stage(s, step, strength)) for s, x in enumerate(xs)]
    except BaseException:  # Ctrl-C too: what waits belongs to no later step
        bus.clear()
        raise


def by_stage(x: Tensor, scales: Sequence[int]) -> list[Tensor]:
    """Each stage's frames, out of the last stage's: frames in both share their noise (Eq. 23)."""
    return [x[:, ::prod(scales[s:])] for s in range(len(scales) + 1)]


def nested_noise(shape: Sequence[int], frames: int, scales: Sequence[int], seed: int,
                 step: int) -> Tensor:
    """Standard normal noise of the last stage's frames (Eq. 23): f c h w, on the CPU, float32.

    Stage 0's frames are drawn first, then those that each further stage inserts, each stage's from
    its own generator, keyed by seed, step and stage. So a seed gives the same noise at every scale,
    on every device, in every batch and process. shape: c h w; frames: of stage 0.
    """
    x = _normal((frames, *shape), seed, step, 0)
    for stage, n in enumerate(scales, start=1):
        inserted = _normal((len(x), n - 1, *shape), seed, step, stage)
        x = torch.cat([x[:, None], inserted], dim=1).flatten(0, 1)
    return x


def _normal(shape: tuple[int, ...], seed: int, step: int, stage: int) -> Tensor:
    """Standard normal noise, keyed by 128 bits: the 32 that torch's CPU generator uses of a seed
    would collide in a large run."""
    key = hashlib.sha256(f"{seed}/{step}/{stage}".encode()).digest()[:16]
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
