"""What must be corrected for a dense video to keep its key frames' path? A grid of answers on the small world.

    python -m evaluation.study --ckpt vc2-small --screen --scenes 8 --device cuda --out study.jsonl
    python -m evaluation.study --ckpt lavie-small --variants paper out:lin:1:off out:mp:1:off
    python -m evaluation.study --ckpt svd-small --fast-motion --variants paper off out:lin:1:off
    python -m evaluation.study --table study.jsonl                     # markdown of what was measured

A variant corrects states x (b f ..) of the network with the same states y of the stage before, x^ = x + L (y - S x),
hands x^ to the next stage, and goes on with x + w (x^ - x). It is written place:lift:weight:paper:scales:levels:keys:

place   one of PLACES, or several with "+"; "none"; or a method of METHODS
lift    L: mp (Moore-Penrose), lin (linear), cubic (Catmull-Rom), hold (the key frame before)
weight  w by the share of noise t/T: a number, or one of WEIGHTS
paper   its own corrections besides: on, off, spatial, temporal
scales  2x2 or 4, ..
levels  all; low: of lower resolution than the latents
keys    m: only every m-th key frame corrects, and the others are held out: motion that is m times as fast for the
        correction, but not for the network. With one further stage, and the paper's corrections off

Networks see all scenes in one batch, and temporal attention all samples and windows at once: wall times are not those
of the package. One JSON line a variant and stage, with the value of every scene.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

import zerosmooth
from evaluation.metrics import between, blend_psnr, psnr
from smallworld.draw import DIRECTIONS, MOTION, Scene, coverage, first_frame, frame_times, random_scene, render
from smallworld.motion import jitter, redrawn_psnr, smoothness
from smallworld.read import Reading, read
from zerosmooth.attention import TemporalAttention, attend_frames, fusion_matrix
from zerosmooth.bus import Correction, Stage
from zerosmooth.cascade import METHODS, Cascade, nested_noise, sample_cascade
from zerosmooth.guidance import Guidance, Inputs
from zerosmooth.models.lavie import LaVieTransformer
from zerosmooth.models.layers import ResBlock, TemporalResBlock
from zerosmooth.models.svd import SVDResBlock, SVDTemporalBlock, SVDTransformer
from zerosmooth.models.videocrafter import TemporalConv, TemporalTransformer
from zerosmooth.operators import A1, Interpolated, S
from zerosmooth.pipeline import IMAGE_NOISE

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import tiny_dit  # noqa: E402 - no package, but a file

# --- variants

PLACES = {
    "in": "what enters temporal attention",
    "out": "what temporal attention puts out",
    "conv": "the temporal convolution's own branch, its output less its input",
    "stream": "the residual stream behind the temporal convolution",
    "res": "the ResNet block's output before it; in LaVie, of those that normalise over frames",
    "block": "all the temporal transformer adds, its feed-forward included",
    "transformer": "the residual stream behind the transformer that holds temporal attention",
    "net": "what the network predicts",
}
WEIGHTS: dict[str, Callable[[float], float]] = {
    "wt": lambda share: 0.8 * share,  # Eq. 24
    "t": lambda share: share,
    "cos": lambda share: math.sin(math.pi / 2 * share) ** 2,
    "half": lambda share: float(share > 0.5),
    "early": lambda share: float(share > 0.8),
    "late": lambda share: float(share <= 0.5),
}


@dataclass(frozen=True)
class Variant:
    place: str = "none"
    lift: str = "lin"
    weight: str = "1"
    paper: str = "off"
    scales: str = "2x2"
    levels: str = "all"
    keys: str = "1"

    @classmethod
    def parse(cls, text: str) -> Variant:
        return cls(*text.split(":")) if text not in NAMED else NAMED[text]

    def __str__(self) -> str:
        known = [name for name, variant in NAMED.items() if variant == self]
        parts = [self.place, self.lift, self.weight, self.paper, self.scales, self.levels, self.keys]
        while not known and len(parts) > 4 and parts[-1] == ("2x2", "all", "1")[len(parts) - 5]:
            parts.pop()
        return known[0] if known else ":".join(parts)

    @property
    def places(self) -> list[str]:
        return [p for p in self.place.split("+") if p in PLACES]

    def weight_at(self, share: float) -> float:
        return WEIGHTS[self.weight](share) if self.weight in WEIGHTS else float(self.weight)

    def cascade(self, frames: int) -> Cascade:
        scales = tuple(int(n) for n in self.scales.split("x"))
        if self.place in METHODS:
            return Cascade(frames, scales, method=self.place)
        spatial, temporal = self.paper in ("on", "spatial"), self.paper in ("on", "temporal")
        return Cascade(frames, scales, correction=Correction(spatial=spatial, temporal=temporal))


NAMED = {"paper": Variant(paper="on"), "off": Variant(), "truth": Variant("truth")}
NAMED |= {name: Variant(name) for name in ("direct", "ddnm")}


def screen() -> list[str]:
    """The grid, what is likely to matter first."""
    places = ["out", "out+conv", "conv", "stream", "out+stream", "block+conv", "res", "out+res", "net", "in"]
    places += ["transformer+stream", "transformer"]
    kinds = ["lin:1:off", "lin:1:on", "mp:1:off", "mp:1:on", "lin:wt:on", "lin:wt:off", "mp:wt:on", "mp:wt:off"]
    return ["truth", "paper", "off"] + [f"{place}:{kind}" for kind in kinds for place in places]


def held_out() -> list[str]:
    """Key frames that are 1, 2, 4 and 8 times as far apart for the correction."""
    kinds = ["lin:1", "mp:1", "cubic:1", "lin:half", "lin:t", "lin:late"]
    places = ("out", "out+conv", "block+conv", "net")
    base = ["truth", *(f"none:lin:1:off:4:all:{m}" for m in (1, 2, 4, 8))]
    return base + [f"{place}:{kind}:off:4:all:{m}" for kind in kinds for place in places for m in (4, 8, 1, 2)]


def final() -> list[str]:
    """Weights, levels, smoother lifts and other cascades for the places that survive."""
    kinds = ["lin:1:off", "lin:1:on", "cubic:1:off", "lin:1:off:4", "lin:half:off", "lin:t:off", "lin:cos:off"]
    kinds += ["lin:early:off", "lin:late:off", "lin:1:off:2x2:low", "lin:1:spatial", "lin:1:temporal", "hold:1:off"]
    names = ["truth", "paper", "off", "direct", "ddnm", "none:lin:1:on:4"]
    return names + [f"{place}:{kind}" for kind in kinds for place in ("out", "out+conv", "block+conv", "out+stream")]


@cache
def lift_matrix(kind: str, k: int, n: int, device: torch.device) -> Tensor:
    """f k: what each key frame's correction does to each frame."""
    eye = torch.eye(k)[None]
    if kind in ("mp", "lin", "hold"):
        return {"mp": S, "lin": Interpolated, "hold": A1}[kind](n).lift(eye)[0].to(device)
    x = torch.arange(k * n) / n  # Catmull-Rom; ends repeat, and frames behind the last key frame stay
    at, t = x.long(), (x - x.floor())[:, None]
    a, b, c, d = (torch.eye(k)[(at + i).clamp(0, k - 1)] for i in (-1, 0, 1, 2))
    curve = b + t * (c - a) / 2 + t**2 * (a - 2.5 * b + 2 * c - d / 2) + t**3 * (1.5 * (b - c) + (d - a) / 2)
    return torch.where(at[:, None] < k - 1, curve, b).to(device)


class Corrector:
    """Hooks that correct a network's states as a variant says. shares: t/T of every step."""

    def __init__(self, network: nn.Module, variant: Variant, shares: Sequence[float], stages: int) -> None:
        self.variant, self.shares, self.stages = variant, shares, stages
        self.waiting: dict[tuple[int, int, str], Tensor] = {}
        self.network, self.batch, self.tokens = network, 0, 0
        self.stage: Stage | None = None

    @contextmanager
    def hooked(self) -> Iterator[None]:
        hooks = [self.network.register_forward_pre_hook(self.begin)]
        for place in self.variant.places:
            for name, module, part in taps(self.network, place):
                hooks.append(self.hook(f"{name}/{part}", module, part))
        try:
            yield
        finally:
            assert not self.waiting
            for hook in hooks:
                hook.remove()

    def begin(self, network: nn.Module, args: tuple[Any, ...]) -> None:
        self.stage = next((a for a in args if isinstance(a, Stage)), None)
        self.batch, self.tokens = args[0].shape[0], args[0].shape[-2] * args[0].shape[-1]

    def hook(self, name: str, module: nn.Module, part: str) -> Any:
        if part == "input":
            return module.register_forward_pre_hook(lambda _, args: (self.correct(name, args[0]), *args[1:]))
        if part == "output":
            return module.register_forward_hook(lambda _, args, out: self.correct(name, out))
        return module.register_forward_hook(lambda _, args, out: args[0] + self.correct(name, out - args[0]))

    def correct(self, name: str, x: Tensor) -> Tensor:
        """x: b f .. or (b f) .."""
        stage = self.stage
        if stage is None:
            return x
        w = self.variant.weight_at(self.shares[stage.step])
        image = x.shape[0] != self.batch or x.ndim == 5
        if w == 0 or (
            self.variant.levels == "low" and self.tokens == math.prod(x.shape[-2:] if image else x.shape[2:3])
        ):
            return x
        h = x.unflatten(0, (self.batch, -1)) if image and x.ndim == 4 else x
        corrected = h
        if stage.index > 0:
            m = int(self.variant.keys)
            y = self.waiting.pop((stage.index - 1, stage.branch, name))[:, ::m]
            L = lift_matrix(self.variant.lift, y.shape[1], m * stage.n, y.device)[: h.shape[1]]
            delta = (L @ (y - h[:, :: m * stage.n]).flatten(2)).unflatten(2, h.shape[2:])
            corrected = h + delta
        if stage.index < self.stages - 1:
            self.waiting[stage.index, stage.branch, name] = corrected
        return (corrected if w == 1 else torch.lerp(h, corrected, w)).view_as(x) if stage.index > 0 else x


def taps(network: nn.Module, place: str) -> Iterator[tuple[str, nn.Module, str]]:
    """Name and module of a place in a network, and the part of the module that it is."""
    kinds: dict[str, tuple[tuple[type[nn.Module], ...], str]] = {
        "in": ((TemporalAttention,), "input"),
        "out": ((TemporalAttention,), "output"),
        "conv": ((TemporalConv, TemporalResBlock), "branch"),
        "stream": ((TemporalConv, TemporalResBlock), "output"),
        "block": ((TemporalTransformer, SVDTemporalBlock), "branch"),
        "transformer": ((TemporalTransformer, SVDTransformer, LaVieTransformer, tiny_dit.Block), "output"),
    }
    for name, module in network.named_modules():
        if place == "net":
            yield name, network, "output"
            return
        if place == "res":
            if isinstance(module, TemporalConv):
                yield name, module, "input"
            elif isinstance(module, SVDResBlock):
                yield f"{name}.spatial", module.spatial, "output"
            elif isinstance(module, ResBlock) and module.across_frames:
                yield name, module, "output"
        elif isinstance(module, kinds[place][0]):
            yield name, module, kinds[place][1]


@cache
def spans_on(spans: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Frames of each window, w t0; and how they are fused, f (w t0)."""
    index = torch.stack([torch.arange(*span) for span in spans])
    fuse = torch.zeros(int(index.max()) + 1, index.numel())
    fuse[index.flatten(), torch.arange(index.numel())] = fusion_matrix(list(spans)).flatten()
    return index.to(device), fuse.to(device)


def attend_all(self: TemporalAttention, spans: list[tuple[int, int]], qkv: Tensor) -> Tensor:
    """`TemporalAttention.attend` of all samples and windows at once."""
    b, heads, attention = qkv.shape[0], self.heads, self.position or attend_frames
    states = rearrange(qkv, "b f l (three h d) -> three (b l) h f d", three=3, h=heads)
    if len(spans) > 1:
        index, fuse = spans_on(tuple(spans), qkv.device)
        o = attention(*rearrange(states[:, :, :, index], "three n h w f d -> three (n w) h f d"))
        o = fuse @ rearrange(o, "(n w) h f d -> n h (w f) d", w=len(spans))
    else:
        o = attention(*states)
    return rearrange(o, "(b l) h f d -> b f l (h d)", b=b)


# --- what is sampled


class World:
    """Scenes of a checkpoint's small world, sampled in one batch."""

    network: Any
    sampler: Any
    scenes: Sequence[Any]

    def __init__(self, name: str, count: int, fast: bool, seed: int, steps: int | None, device: str) -> None:
        """count: of scenes; of fast motion, for each path."""
        pipeline = self.pipeline = zerosmooth.load(name, device, torch.float32)
        config, family, networks = pipeline.config, pipeline.family, pipeline.networks
        rng, tail = random.Random(f"gate/{seed}"), "image" in family.takes
        plain = [random_scene(rng, tail) for _ in range(count)]
        scenes = fast_scenes(seed, count, tail, config.defaults.fps) if fast else plain
        self.device, self.scenes, self.seeds = pipeline.device, scenes, [seed + i for i in range(len(scenes))]
        self.network, self.t0, self.fps = networks.unet, config.unet.frames, config.defaults.fps
        settings = self.settings = pipeline.settings(**({} if steps is None else {"steps": steps}))
        self.sampler = config.sampler.sampler(settings.steps, settings.eta)
        self.size = settings.height
        self.shape = (config.unet.out_channels, *(settings.height // config.vae.factor,) * 2)
        self.paced = bool("image" in family.takes or family.told_rate(config))  # else it is not asked for a speed
        inputs = Inputs([s.prompt(speed=self.paced) for s in scenes])
        if "image" in family.takes:
            images = torch.stack([first_frame(s, self.size) for s in scenes])
            pixels = (images.float() / 127.5 - 1).permute(0, 3, 1, 2).to(self.device)
            image_noise = torch.cat(
                [nested_noise((3, self.size, self.size), 1, (), s, IMAGE_NOISE) for s in self.seeds]
            )
            buckets = [255 if isinstance(s, Moving) and s.pace > 4 else MOTION[s.speed] for s in scenes]
            self.buckets = torch.tensor(buckets, dtype=torch.float32, device=self.device)
            self.network.register_forward_pre_hook(self.tell_buckets)
            inputs = replace(inputs, pixels=pixels, noise=image_noise.to(self.device))
        with torch.inference_mode():
            branches = family.branches(networks, inputs, settings)
            self.guided = Guidance(self.network, branches, settings)
        self.noises: dict[tuple[Any, ...], Tensor] = {}

    def tell_buckets(self, network: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        condition = args[3].clone()
        condition[:, 1] = self.buckets.repeat(len(condition) // len(self.buckets))
        return (*args[:3], condition, *args[4:])

    def predict(self, step: int, fps: float, x: Tensor, stage: Stage | None) -> Tensor:
        told = self.pipeline.family.condition(self.pipeline.config, fps, self.settings)
        return self.guided(x, self.sampler.timestep(step), told, stage)

    def noise(self, scales: tuple[int, ...], step: int) -> Tensor:
        key = (scales, step)
        if key not in self.noises:
            x = [nested_noise(self.shape, self.t0, scales, seed, step) for seed in self.seeds]
            self.noises[key] = torch.stack(x).to(self.device)
        return self.noises[key]

    def sample(self, variant: Variant, later: Later | None = None, start: Tensor | None = None) -> list[Tensor]:
        """Latents of every stage. start: those of the last stage, as they are at the first step of `later`."""
        cascade = variant.cascade(self.t0)
        sampler, first = (self.sampler, 0) if later is None else (later, later.first)
        shares = [sampler.share(i) for i in range(len(sampler))]

        def network(step: int, index: int, x: Tensor, stage: Stage | None) -> Tensor:
            return self.predict(step + first, float(self.fps * cascade.scale_of(index)), x, stage)

        def noise(step: int) -> Tensor:
            return start if start is not None and step < 0 else self.noise(cascade.scales, step + first * (step >= 0))

        with torch.inference_mode(), Corrector(self.network, variant, shares, cascade.stages).hooked():
            return sample_cascade(network, sampler, cascade, noise)

    def true_latents(self, n: int) -> Tensor:
        """Of the scenes themselves, at n times the frames: b f c h w."""
        times = frame_times(self.t0 * n, self.fps * n)
        vae = self.pipeline.networks.vae
        with torch.inference_mode():
            videos = [render([s], times[None], self.size)[0].to(self.device, vae.dtype) * 2 - 1 for s in self.scenes]
            return torch.stack([vae.encode(x) for x in videos])

    def frames(self, latents: Sequence[Tensor]) -> list[list[np.ndarray[Any, Any]]]:
        """Of each scene, of each stage: uint8 f h w 3."""
        decode, vae = self.pipeline.decode, self.pipeline.config.vae
        if vae.temporal:
            return [[decode(x[i], vae.decode_chunk_size).numpy() for x in latents] for i in range(len(self.scenes))]
        stages = [decode(x.flatten(0, 1), 512).unflatten(0, x.shape[:2]).numpy() for x in latents]
        return [[x[i] for x in stages] for i in range(len(self.scenes))]


class Discs(World):
    """The example backbone: labels for scenes, pixels for latents."""

    def __init__(self, labels: Sequence[int], seed: int, steps: int | None, device: str) -> None:
        self.device, self.scenes, self.seeds = torch.device(device), labels, [seed + i for i in range(len(labels))]
        self.network, self.t0, self.fps = tiny_dit.trained().to(device), tiny_dit.FRAMES, 8
        self.shape, self.sampler, self.noises = (1, tiny_dit.SIZE, tiny_dit.SIZE), tiny_dit.Flow(steps or 20), {}
        self.labels = torch.tensor(labels, device=device)

    def predict(self, step: int, fps: float, x: Tensor, stage: Stage | None) -> Tensor:
        t = torch.full((len(x),), self.sampler.times[step], device=x.device)
        return self.network(x, t, self.labels, stage)

    def true_latents(self, n: int) -> Tensor:
        return tiny_dit.draw(self.labels.cpu(), torch.zeros(len(self.labels), 2), self.t0 * n).to(self.device)

    def frames(self, latents: Sequence[Tensor]) -> list[list[np.ndarray[Any, Any]]]:
        stages = [((x[:, :, 0, ..., None] + 1) * 127.5).round().clamp(0, 255).byte().cpu() for x in latents]
        return [[x[i].expand(-1, -1, -1, 3).numpy() for x in stages] for i in range(len(self.scenes))]


class Later:
    """A sampler from step `first` on; what it starts from is no noise but x of that step."""

    def __init__(self, sampler: Any, first: int) -> None:
        self.sampler, self.first, self.stochastic = sampler, first, sampler.stochastic

    def __len__(self) -> int:
        return len(self.sampler) - self.first

    def share(self, i: int) -> float:
        return self.sampler.share(i + self.first)

    def start(self, noise: Tensor) -> Tensor:
        return noise

    def network_input(self, i: int, x: Tensor) -> Tensor:
        return self.sampler.network_input(i + self.first, x)

    def x0(self, i: int, x: Tensor, output: Tensor) -> Tensor:
        return self.sampler.x0(i + self.first, x, output)

    def noised(self, i: int, x0: Tensor, noise: Tensor) -> Tensor:
        return self.sampler.noised(i + self.first, x0, noise)

    def step(self, i: int, x: Tensor, x0: Tensor, noise: Tensor | None) -> Tensor:
        return self.sampler.step(i + self.first, x, x0, noise)


# --- motion that is fast or bends: whole latent pixels, of 8, from key frame to key frame


def shuttle(pace: float, keys: int, time: float) -> tuple[float, float]:
    """Rests two key frames, goes straight for `keys`, rests, comes back. Turns are at key frames."""
    u = time % (2 * keys + 4)
    return pace * (min(max(u - 2, 0), keys) - min(max(u - 4 - keys, 0), keys) - keys / 2), 0.0


def arc(pace: float, radius: float, time: float) -> tuple[float, float]:
    angle = pace / radius * time
    return radius * math.cos(angle), radius * math.sin(angle)


def swing(pace: float, far: float, time: float) -> tuple[float, float]:
    return far * math.sin(pace / far * time), 0.0


PATHS: dict[str, tuple[Callable[[float, Any, float], tuple[float, float]], float, float]] = {
    "straight 3": (shuttle, 3, 10),  # the fastest the small world has
    "straight 8": (shuttle, 8, 4),
    "straight 16": (shuttle, 16, 2),
    "straight 24": (shuttle, 24, 1),
    "arc 8": (arc, 8, 16),  # half-way between key frames 0.5 pixels from the chord
    "arc 16": (arc, 16, 16),  # 2 pixels
    "swing 16": (swing, 16, 16),
}


@dataclass(frozen=True)
class Moving(Scene):
    """A scene with a path of PATHS, in pixels of 64 and key frames of 1 / rate seconds."""

    path: str = "straight 8"
    rate: float = 8.0

    @property
    def pace(self) -> float:
        return PATHS[self.path][1]

    def position(self, time: float) -> tuple[float, float]:
        (move, pace, far), (dx, dy) = PATHS[self.path], DIRECTIONS[self.direction]
        along, across = move(pace, far, time * self.rate)
        return 0.5 + (along * dx - across * dy) / 64, 0.5 + (along * dy + across * dx) / 64


def fast_scenes(seed: int, each: int, tail: bool, rate: float) -> list[Moving]:
    rng = random.Random(f"fast/{seed}")
    scenes = []
    for path in PATHS:
        for _ in range(each):
            made = vars(random_scene(rng)) | {"speed": "quickly", "tail": tail and path.startswith("straight")}
            scenes.append(Moving(**made, path=path, rate=rate))
    return scenes


def noised(world: World, latents: Tensor, level: float) -> tuple[int, Tensor]:
    """The step whose noise is `level` times the data, or nearest to it, and latents as they are there."""
    s = world.sampler
    amounts = [(1.0, float(x)) for x in s.sigmas[:-1]] if hasattr(s, "sigmas") else list(zip(s.alpha, s.sigma))
    step = min(range(len(s)), key=lambda i: abs(math.log(amounts[i][1] / amounts[i][0] / level)))
    alpha, sigma = amounts[step]
    return step, float(alpha) * latents + float(sigma) * world.noise((2, 2), -1)


# --- what is measured, in worker processes

Measures = dict[int, dict[str, float]]  # by a stage's frames for one of the base


def one_thread() -> None:
    torch.set_num_threads(1)


def measure(
    videos: list[np.ndarray[Any, Any]], scene: Scene | int, rates: list[int], fps: float, keys: int = 1
) -> Measures:
    """As `evaluation.jobs.measures`. scene: a label for a disc. keys off: their distance from the base's, in pixels."""
    got: Measures = {}
    base: Reading | None = None
    for x, n in zip(videos, rates):
        frames = torch.from_numpy(np.ascontiguousarray(x))
        size = frames.shape[1]
        reading = read_disc(frames) if isinstance(scene, int) else read(frames)
        base = base or reading
        m = got[n] = {}
        if n > 1:
            m["PSNR"], m["blend"] = psnr(frames[::n], torch.from_numpy(videos[0].copy())), blend_psnr(frames, n)
            m["keys off"] = ((reading.path[::n] - base.path) * size).square().sum(1).mean().sqrt().item()
            m |= smoothness(reading, n, size)
        m["jitter"], m["lost"] = jitter(reading, size), reading.path.isnan().any(1).float().mean().item()
        if isinstance(scene, int):
            (vx, vy), (dx, dy) = reading.velocity(fps * n), tiny_dit.SIDES[scene].tolist()
            m["direction right"] = float(vx * dx + vy * dy > 0.8 * math.hypot(vx, vy) > 0)
            continue
        if n > 1:
            m |= redrawn_psnr(frames, reading, scene, n)
            for name, kept in held(frames, torch.from_numpy(videos[0].copy()), reading, base, n, keys):
                m[name] = kept
        m["color right"], m["shape right"] = float(reading.color == scene.color), float(reading.shape == scene.shape)
        m["direction right"] = float(reading.goes(scene.direction, fps * n))
        m["speed right"] = float(reading.has_speed(scene.speed, fps * n))
    return got


def held(frames: Tensor, first: Tensor, reading: Reading, base: Reading, n: int, m: int) -> Iterator[tuple[str, float]]:
    """Against the base's frames and path, where every m-th of its frames corrected: PSNR and distance of those held
    out, and the shape's copies and colour in frames between two that corrected, over that of the latter."""
    if base.shape is None or base.path.isnan().any():
        return
    inside = (len(base.path) - 1) // m * m  # up to the last that corrected
    out = torch.arange(inside) % m > 0
    if m > 1:
        yield "held PSNR", psnr(frames[::n][:inside][out], first[:inside][out])
        yield "held off", (reading.path[::n] - base.path)[:inside][out].norm(dim=1).mean().item() * frames.shape[1]
    f = inside * n
    path, area = (Interpolated(n).lift(x[None])[0, :f] for x in (base.path, base.area))
    ghost, solid = copies(frames[:f], base.shape, path, (area / math.pi).sqrt())
    keys = torch.arange(f) % (n * m) == 0
    yield "ghost", ghost[~keys].mean().item()
    yield "ghost of keys", ghost[keys].mean().item()
    yield "solid", (solid[~keys].mean() / solid[keys].mean()).item()


def read_disc(frames: Tensor) -> Reading:
    """A white disc on black."""
    x = (frames[..., 0].float() / 255 - 0.1).clamp(min=0)
    area = x.mean((1, 2))
    at = (torch.arange(x.shape[1]) + 0.5) / x.shape[1]
    path = torch.stack([(x.sum(1) * at).sum(1), (x.sum(2) * at).sum(1)], 1) / x.sum((1, 2))[:, None]
    bright = ((x**2).sum((1, 2)) / x.sum((1, 2)))[:, None].expand(-1, 3)
    return Reading(None, "circle", path, area, 1.0, bright)


def copies(frames: Tensor, shape: str, path: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Of each frame: the share of the colour farther than 3 pixels from a shape's outline, and the colour in its core.
    path: f 2; radius: f."""
    size = frames.shape[1]
    chroma = ((frames.float().amax(-1) - frames.float().amin(-1)) / 255 - 0.1).clamp(min=0)
    near, core = (
        coverage([shape] * len(path), path[:, None], r, size)[:, 0] for r in (radius + 3 / size, radius * 0.6)
    )
    ghost = (chroma * (1 - near)).sum((1, 2)) / chroma.sum((1, 2)).clamp(min=1e-6)
    return ghost, (chroma * core).sum((1, 2)) / core.sum((1, 2))


def measure_fast(videos: list[np.ndarray[Any, Any]], truth: np.ndarray[Any, Any], scene: Moving) -> Measures:
    """Of a cascade's inserted frames between key frames that differ, against the true ones. Lengths in pixels.

    own: distance of the shape from its true place, less what lies between the key frames' distances; ghost and solid
    are of that place, see `copies`; solid is over that of the key frames.
    """
    got: Measures = {}
    for s, x in enumerate(videos):
        n = 2**s
        frames, true = (
            torch.from_numpy(np.ascontiguousarray(x)),
            torch.from_numpy(truth[:: len(truth) // len(x)].copy()),
        )
        f, size = len(frames), frames.shape[1]
        path = torch.tensor([scene.position(i / (scene.rate * n)) for i in range(f)])
        reading = read(frames)
        error = (reading.path - path) * size
        keys = torch.arange(f) % n == 0
        m = got[n] = {"lost": reading.path.isnan().any(1).float().mean().item()}
        m["keys PSNR"], m["keys place"] = (
            psnr(frames[keys], true[keys]),
            error[keys].square().sum(1).mean().sqrt().item(),
        )
        if n == 1:
            continue
        steps = (path[::n][1:] - path[::n][:-1]).norm(dim=1) * size
        moving = torch.cat([(steps > 0.5).repeat_interleave(n), torch.zeros(n, dtype=torch.bool)]) & ~keys
        drift = torch.cat([between(error, n), error[::n][-1:].expand(n - 1, 2)])
        m["PSNR"], m["PSNR of base's keys"] = (
            psnr(frames[moving], true[moving]),
            psnr(frames[keys], torch.tensor(videos[0])),
        )
        m["place"] = error[moving].square().sum(1).mean().sqrt().item()
        m["own"] = (error - drift)[moving].square().sum(1).mean().sqrt().item()
        m["area"] = (reading.area / read(true).area - 1).abs()[moving].mean().item()
        radius = torch.full((f,), scene.radius)
        ghost, solid = copies(frames, scene.shape, path + drift.nan_to_num() / size, radius)
        m["ghost"], m["ghost of keys"] = ghost[moving].mean().item(), ghost[keys].mean().item()
        m["solid"] = (solid[moving].mean() / solid[keys].mean()).item()
    return got


# --- the run


class Writer:
    """Appends what worker processes measured, a variant at a time, as soon as it is there."""

    def __init__(self, path: Path, workers: int) -> None:
        self.path = path
        self.waiting: list[tuple[dict[str, Any], list[Future[Measures]]]] = []
        context = get_context("spawn")
        self.pool = ProcessPoolExecutor(workers, context, initializer=one_thread) if workers else None

    def add(self, about: dict[str, Any], work: Callable[..., Measures], jobs: Sequence[tuple[Any, ...]]) -> None:
        futures: list[Future[Measures]] = []
        for job in jobs:
            future: Future[Measures] = Future()
            if self.pool is None:
                future.set_result(work(*job))
            futures.append(future if self.pool is None else self.pool.submit(work, *job))
        self.waiting.append((about, futures))
        self.flush()

    def flush(self, wait: bool = False) -> None:
        while self.waiting and (wait or all(f.done() for f in self.waiting[0][1])):
            about, futures = self.waiting.pop(0)
            results = [f.result() for f in futures]
            with self.path.open("a") as file:
                for n in results[0]:
                    names = dict.fromkeys(name for r in results for name in r[n])
                    values = {name: [round(r[n].get(name, math.nan), 4) for r in results] for name in names}
                    print(json.dumps({**about, "n": n, "measures": values}), file=file)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="vc2-small", help="by name or file, or tiny-dit (default: vc2-small)")
    parser.add_argument("--variants", nargs="+", default=[], help="by name or as place:lift:weight:paper:scales:levels")
    parser.add_argument("--screen", action="store_true", help="the grid of places, lifts, weights")
    parser.add_argument("--final", action="store_true", help="weights, levels and lifts of the best places")
    parser.add_argument("--held-out", action="store_true", help="key frames far apart: corrected by some of them alone")
    parser.add_argument("--fast-motion", action="store_true", help="of true videos, noised half-way")
    parser.add_argument("--levels", type=float, nargs="+", default=[1, 0.3], help="of its noise, over data")
    parser.add_argument("--scenes", type=int, default=8, help="or, of fast motion, scenes a path (default: 8)")
    parser.add_argument("--seed", type=int, default=7000, help="of scenes and noise (default: 7000)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the checkpoint's)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--workers", type=int, default=3, help="processes that measure; 0: none (default: 3)")
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds after which no variant is begun")
    parser.add_argument("--out", type=Path, default=Path("study.jsonl"), help="appended to (default: study.jsonl)")
    parser.add_argument("--table", type=Path, nargs="+", help="print what such files hold, and do nothing else")
    args = parser.parse_args()
    if args.table:
        print(table([json.loads(line) for path in args.table for line in path.read_text().splitlines()]))
        return 0
    began = time.perf_counter()
    torch.backends.cudnn.allow_tf32 = False  # key frames are compared to 60 dB
    TemporalAttention.attend = attend_all  # type: ignore[method-assign]
    writer = Writer(args.out, args.workers)
    names = args.variants + screen() * args.screen + final() * args.final + held_out() * args.held_out
    if args.ckpt == "tiny-dit":
        world: World = Discs([i % 4 for i in range(args.scenes)], args.seed, args.steps, args.device)
    else:
        world = World(args.ckpt, args.scenes, args.fast_motion, args.seed, args.steps, args.device)
    todo = [v for v in dict.fromkeys(map(Variant.parse, names)) if all(any(taps(world.network, p)) for p in v.places)]
    about = {"ckpt": args.ckpt, "seed": args.seed, "device": args.device}
    run = fast_motion if args.fast_motion else straight
    for done, begun in enumerate(run(world, todo, writer, about, args)):
        print(f"{time.perf_counter() - began:6.1f} s  {args.ckpt} {done + 1} of {len(todo)}  {begun}", flush=True)
        if time.perf_counter() - began > args.budget:
            break
    writer.flush(wait=True)
    return 0


def straight(world: World, todo: Sequence[Variant], writer: Writer, about: dict[str, Any], args: Any) -> Iterator[str]:
    for variant in todo:
        began = time.perf_counter()
        rates = [1, 2, 4]
        if variant.place == "truth":
            latents = [world.true_latents(n) for n in rates]
        else:
            latents = world.sample(variant)
            rates = [x.shape[1] // world.t0 for x in latents]
        videos = world.frames([x.cpu() if world.device.type == "cpu" else x for x in latents])
        seconds = round(time.perf_counter() - began, 2)
        jobs = [(x, scene, rates, world.fps, int(variant.keys)) for x, scene in zip(videos, world.scenes)]
        writer.add({**about, "variant": str(variant), "seconds": seconds}, measure, jobs)
        yield f"{variant}  {seconds} s"


def fast_motion(
    world: World, todo: Sequence[Variant], writer: Writer, about: dict[str, Any], args: Any
) -> Iterator[str]:
    assert all(isinstance(s, Moving) for s in world.scenes), "fast motion is of the small world"
    dense = world.true_latents(4)
    truth = [x[0] for x in world.frames([dense])]
    paths = defaultdict(list)
    for i, scene in enumerate(world.scenes):
        paths[scene.path].append(i)
    for variant in todo:
        for level in [math.nan] if variant.place == "truth" else args.levels:
            if variant.place == "truth":
                step, latents = 0, [dense[:, :: 4 // n] for n in (1, 2, 4)]
            else:
                step, start = noised(world, dense, level)
                latents = world.sample(variant, Later(world.sampler, step), start)
            videos, share = world.frames(latents), round(world.sampler.share(step), 3)
            for path, members in paths.items():
                jobs = [(videos[i], truth[i], world.scenes[i]) for i in members]
                at = {} if math.isnan(level) else {"noise": level, "t/T": share}
                line = {**about, "variant": str(variant), "path": path, **at}
                writer.add(line, measure_fast, jobs)
        yield str(variant)


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: a table a checkpoint and stage, mean ± standard error over scenes without NaN."""
    groups = defaultdict(list)
    for line in lines:
        if line["n"] > 1:
            groups[line["ckpt"], line["n"], "path" in line].append(line)
    out = []
    for (ckpt, n, _), rows in groups.items():
        rows.sort(key=lambda row: (row.get("path", ""), -row.get("noise", math.inf)))  # stable: variants stay in order
        about = [key for key in ("path", "noise", "t/T", "seconds") if any(key in row for row in rows)]
        names = list(dict.fromkeys(name for row in rows for name in row["measures"]))
        out += [f"\n**{ckpt}, {n}x**\n", "| " + " | ".join(["variant", *about, *names]) + " |"]
        out.append("|---" * (1 + len(about) + len(names)) + "|")
        for row in rows:
            cells = [f"`{row['variant']}`", *(str(row.get(key, "-")) for key in about)]
            cells += [show(name, row["measures"].get(name, [])) for name in names]
            out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def show(name: str, values: Sequence[float]) -> str:
    x = np.array(values, dtype=float)
    x = x[~np.isnan(x)]
    if not len(x):
        return "-"
    digits = 1 if "PSNR" in name or "redrawn" in name or name == "blend" else 2
    error = f" ± {x.std(ddof=1) / len(x) ** 0.5:.{digits}f}" if len(x) > 1 else ""
    return f"{x.mean():.{digits + (name in ('area', 'jitter', 'off path'))}f}{error}"


if __name__ == "__main__":
    sys.exit(main())
