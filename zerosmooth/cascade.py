"""The self-cascade: one network, several frame rates, one denoising step at a time (paper Sec. 4.1, 4.3, A.2)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import Annotated, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from .bus import REUSE, Correction, HiddenStateBus, Stage
from .fields import PART, Range, check_fields
from .operators import Interpolated, S, back_project

METHODS = {  # and what every stage after the first does
    "zerosmooth": "attention in windows, corrected by the stage before",
    "windowed": "attention in windows, no correction",
    "direct": "attention over all frames, positions as they come, no correction",
    "ddnm": "windows; at each step the key frames' predicted data are those of the first stage (Eq. 6 on latents)",
    "freenoise": "windows; noise repeats that of the first frames in shuffled order (arXiv 2310.15169), no cascade",
}
OURS = ("correction", "prediction", "new_frames", "strength", "strength_schedule")
IDLE = {  # fields of `Cascade` that do nothing to a method
    "zerosmooth": (),
    "windowed": OURS,
    "direct": (*OURS, "overlap", "reuse"),
    "ddnm": OURS,
    "freenoise": (*OURS, "color_correction", "join"),
}
MOST = 1 << 16  # frames


@dataclass(frozen=True)
class Cascade:
    """The shape of a cascade and the settings of the method. Stage s denoises frames * scales[0] * .. scales[s-1]."""

    frames: Annotated[int, "key frames (t0): at most what the network was trained on", Range(1, MOST)] = 16
    scales: Annotated[
        tuple[int, ...], "frames of each further stage for one of the stage before, 2 or more", Range(2, MOST)
    ] = (2, 2)
    method: Annotated[str, f"zerosmooth, or a baseline: {', '.join(METHODS)}"] = "zerosmooth"
    correction: Correction = Correction()
    strength: Annotated[float, "highest correction strength w_t, 0 to 1", Range(0, 1)] = 0.8
    strength_schedule: Annotated[Literal["linear", "constant"], "of w_t: falling with t/T (Eq. 24), or not"] = "linear"
    overlap: Annotated[int | None, "frames that two attention windows share; half a window if not said"] = None
    color_correction: Annotated[bool, "pull each frame's latent colours to the key frames' (A.2)"] = False
    prediction: Annotated[bool, "correct predicted frames by what lies between key frames: not in the paper"] = False
    new_frames: Annotated[
        bool, "compute inserted frames alone, beside states that key frames had: not in the paper"
    ] = False
    reuse: Annotated[int, "inner levels of the network run in one of so many steps: not in the paper", REUSE] = 1
    join: Annotated[float, "share of the steps after which longer videos begin, from predicted key frames", PART] = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r}; use one of {', '.join(METHODS)}")
        if self.frames_of(len(self.scales)) > MOST:
            raise ValueError(f"scales={self.scales} make more than {MOST:,} frames; use fewer or smaller ones")
        if self.overlap is not None and not 0 <= self.overlap < self.frames:
            raise ValueError(f"overlap={self.overlap} of windows of {self.frames} frames; use 0 to {self.frames - 1}")
        if self.new_frames and (not self.prediction or self.correction.spatial or self.correction.temporal):
            raise ValueError("new_frames leaves no hidden states to correct; use it with preset anchored and no more")
        for setting in fields(self):
            if setting.name in IDLE[self.method] and getattr(self, setting.name) != setting.default:
                raise ValueError(f"{setting.name} does nothing to {self.method}; leave it out")

    @property
    def stages(self) -> int:
        return len(self.scales) + 1

    def scale_of(self, stage: int) -> int:
        """Frames of a stage for one of stage 0."""
        return prod(self.scales[:stage])

    def frames_of(self, stage: int) -> int:
        return self.frames * self.scale_of(stage)

    def first_step(self, steps: int) -> int:
        """Of the stages behind the first, among so many: at least the last one is theirs."""
        return min(round(self.join * steps), steps - 1) if self.scales else 0

    def strength_at(self, share: float) -> float:
        """w_t at t/T = share (Eq. 24)."""
        if self.method != "zerosmooth":
            return 0.0
        return self.strength * (share if self.strength_schedule == "linear" else 1.0)

    def bus(self, device: str | None = None) -> HiddenStateBus | None:
        """The bus of a run; None for direct inference, where every stage is the plain network. device: where hidden
        states wait, if not where they are made."""
        if self.method == "direct":
            return None
        own = self.overlap, self.correction, device, self.new_frames, self.reuse
        return HiddenStateBus(self.frames, self.scales, *own)


class Sampler(Protocol):
    """What `sample_cascade` needs of a sampler; `samplers.DDIM` and `samplers.Euler` are such."""

    stochastic: bool  # whether a step adds noise

    def __len__(self) -> int: ...
    def share(self, i: int) -> float: ...
    def start(self, noise: Tensor) -> Tensor: ...
    def network_input(self, i: int, x: Tensor) -> Tensor: ...
    def x0(self, i: int, x: Tensor, output: Tensor) -> Tensor: ...
    def step(self, i: int, x: Tensor, x0: Tensor, noise: Tensor | None) -> Tensor: ...
    def noised(self, i: int, x0: Tensor, noise: Tensor) -> Tensor: ...


Network = Callable[[int, Tensor, "Stage | None"], Tensor]  # (index, x, stage) -> the network's output for stage `index`


def cascade_step(
    network: Network, xs: Sequence[Tensor], bus: HiddenStateBus | None, step: int, strength: float
) -> list[Tensor]:
    """The network's output for all stages at one denoising step. xs: b t_s c h w of stage s = 0, 1, ..

    Stages run one after the other, each freeing the states of the one before as it reads them. ValueError if the bus is
    of another cascade; BusError if the network takes no part in what it is set to.
    """
    if bus is not None and len(xs) != len(bus.scales) + 1:
        raise ValueError(f"{len(xs)} stages on a bus of {len(bus.scales) + 1}")
    views = [None if bus is None else bus.stage(s, step, strength) for s in range(len(xs))]
    outputs = []
    try:
        for s, (x, view) in enumerate(zip(xs, views)):
            outputs.append(network(s, x, view))
            if bus is not None:
                bus.check_served(s)
        return outputs
    except BaseException:  # Ctrl-C too: what waits belongs to no later step
        if bus is not None:
            bus.clear()
        raise


def sample_cascade(
    network: Callable[[int, int, Tensor, Stage | None], Tensor],
    sampler: Sampler,
    cascade: Cascade,
    noise: Callable[[int], Tensor],
    bus: HiddenStateBus | None = None,
    look: Callable[[int, list[Tensor]], None] = lambda step, data: None,
) -> list[Tensor]:
    """Denoise all stages from noise to latents. Returns b t_s c h w of stage s = 0, 1, ..

    network: (step, index of the stage, x as the sampler shows it, stage) -> the guided output. noise: step -> standard
    normal noise of the last stage, b t c h w; step -1 is the start. bus: `cascade.bus()` unless given. look: called in
    each step with the latents that the stages predict there. ValueError for noise of other frames.
    """
    bus = cascade.bus() if bus is None else bus
    if bus is not None:
        bus.clear()  # of what an interrupted video left
    start, frames = noise(-1), cascade.frames_of(cascade.stages - 1)
    if start.ndim != 5 or start.shape[1] != frames:
        raise ValueError(f"noise of shape {tuple(start.shape)}; b {frames} c h w is needed, the last stage's frames")
    starts, first = by_stage(start, cascade.scales), cascade.first_step(len(sampler))
    xs = [sampler.start(x) for x in (starts[:1] if first else starts)]
    data: list[Tensor] = []
    if cascade.method == "freenoise":
        assert bus is not None
        xs = [repeated_noise(xs[0], x.shape[1], bus.frames - bus.overlap) for x in xs]
    for i in range(len(sampler)):
        if i == first > 0:  # longer videos begin, where the shortest is by now
            for n, e in zip(cascade.scales, starts[1:]):
                data.append(Interpolated(n).lift(data[-1]))
                xs.append(back_project(sampler.noised(i, data[-1], e), xs[-1], S(n)))
        shown = [sampler.network_input(i, x) for x in xs]
        outputs = cascade_step(
            lambda s, x, view: network(i, s, x, view),
            shown,
            None if i < first else bus,
            i,
            cascade.strength_at(sampler.share(i)),
        )
        fresh = by_stage(noise(i), cascade.scales) if sampler.stochastic else [None] * cascade.stages
        data = [sampler.x0(i, x, y) for x, y in zip(xs, outputs)]
        if cascade.method == "ddnm":
            for s in range(1, len(xs)):
                data[s] = back_project(data[s], data[0], S(cascade.scale_of(s)))
        if cascade.prediction:  # the same with an inverse that reaches the frames between: not in the paper
            for s, n in zip(range(1, len(xs)), cascade.scales):
                data[s] = back_project(data[s], data[s - 1], Interpolated(n))
        look(i, data)
        xs = [sampler.step(i, x, x0, e) for x, x0, e in zip(xs, data, fresh)]
        if cascade.color_correction:
            for s in range(1, len(xs)):
                xs[s] = match_color(xs[s], xs[s - 1])
    if bus is not None:
        bus.clear()
    return xs


def by_stage(x: Tensor, scales: Sequence[int]) -> list[Tensor]:
    """The frames of each stage among those of the last one: noise of a key frame is the same in all stages (Eq. 23)."""
    strides = [prod(scales[s:]) for s in range(len(scales) + 1)]
    return [x[:, ::stride] for stride in strides]


def repeated_noise(x: Tensor, frames: int, stride: int) -> Tensor:
    """FreeNoise's noise for `frames` frames (Qiu et al. 2023, arXiv 2310.15169): x, then block by block of `stride`
    frames those of one window before, shuffled. x: b t0 c h w. The order is the same for every seed."""
    window, rng = x.shape[1], random.Random("freenoise")
    order = list(range(window))
    while len(order) < frames:
        block = order[len(order) - window : len(order) - window + stride]
        rng.shuffle(block)
        order += block
    return x[:, order[:frames]]


def nested_noise(shape: Sequence[int], frames: int, scales: Sequence[int], seed: int, step: int) -> Tensor:
    """Standard normal noise of the last stage's frames (Eq. 23): f c h w, shape = (c, h, w); on the CPU, float32.

    Stage 0's frames are drawn first, then those that each further stage inserts, each from a generator keyed by seed,
    step and stage. So a seed means the same at every scale, on every device, in every batch and process.
    """
    x = _normal((frames, *shape), seed, step, 0)
    for stage, n in enumerate(scales, start=1):
        inserted = _normal((len(x), n - 1, *shape), seed, step, stage)
        x = torch.cat([x[:, None], inserted], dim=1).flatten(0, 1)
    return x


def _normal(shape: tuple[int, ...], seed: int, step: int, stage: int) -> Tensor:
    """Standard normal numbers that belong to a seed, step and stage: the generator's key is all 128 bits of a digest of
    them, where torch's own takes 32, of which a large run would meet the same ones twice."""
    key = hashlib.sha256(f"{seed}/{step}/{stage}".encode()).digest()[:16]
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def match_color(x: Tensor, key: Tensor) -> Tensor:
    """Give every frame and channel of x the mean and deviation over space of the key frames around it (A.2).

    x: b f c h w, key: b k c h w; statistics go linearly from one key frame to the next and stay behind the last.
    """
    at_frames = Interpolated(x.shape[1] // key.shape[1]).lift
    mean, deviation = x.mean((-2, -1), keepdim=True), x.std((-2, -1), keepdim=True)
    key_mean, key_deviation = key.mean((-2, -1), keepdim=True), key.std((-2, -1), keepdim=True)
    normal = (x - mean) / deviation.clamp(min=1e-6)
    return normal * at_frames(key_deviation) + at_frames(key_mean)
