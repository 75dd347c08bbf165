"""What the small Wan makes at two or four times its rate, beside interpolators: the table of
smallworld/wan-small.md.

    python -m smallworld.wan_rows --n 32 --interpolator rife.pt

A row is words with "+" between: positions are `whole`, or else `fractional`; latents attend in
`windows`, or the network sees one window after the other and its `outputs` are fused, or all attend
to all; `lines`, `carried`, `averages` or `fitted` correct; `join` begins half-way. `base` is the
key video alone. A line a row: means, errors, and of how many scenes, as the path of a shape that is
lost counts nowhere.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

import zerosmooth
from evaluation.interpolators import open_interpolators
from evaluation.metrics import psnr
from examples.wan import dense
from examples.wan.dense import Correct, Pairs, ThroughFrames, keep, noises, sample_dense, step_at
from zerosmooth import attention
from zerosmooth.bus import Stage
from zerosmooth.extensions import LIFTS
from zerosmooth.guidance import Branch, Guidance
from zerosmooth.pipeline import Pipeline
from zerosmooth.video import write_picture

from . import gate
from .draw import Scene, frame_times, render
from .motion import jitter, smoothness
from .read import read
from .wan import FAMILY

# words of a row, of which each group gives it one at most
GROUPS = (("whole", "fractional"), ("windows", "outputs"),
          ("lines", "carried", "averages", "fitted"), ("join",))
WORDS = sum(GROUPS, ())
SHIPPED = Path(__file__).with_name("wan-small.safetensors")


class Maker:
    """Makes clips of scenes, each of twice the rate of the one before."""

    def __init__(self, pipeline: Pipeline, steps: int, at: Sequence[float]) -> None:
        self.config, self.networks = pipeline.config, pipeline.networks
        self.settings = pipeline.settings(steps=steps, scale=1)
        self.at = {step_at(share, steps) for share in at}
        self.latents = self.config.unet.frames
        self.fps = float(self.config.defaults.fps)

    def drawn(self, scenes: Sequence[Scene], n: int) -> Tensor:
        """Latents of the true clips, n frames for a key frame."""
        frames = FAMILY.frames(self.config, n * (self.latents - 1) + 1)
        times = frame_times(frames, n * self.fps).expand(len(scenes), -1)
        return self.networks.vae.encode(render(scenes, times, self.settings.height) * 2 - 1)

    def frames(self, z: Tensor) -> Tensor:
        x = self.networks.vae.decode(z).clamp(-1, 1)
        return rearrange((x + 1) * 127.5, "b f c h w -> b f h w c").round().byte()

    def correction(self, words: set[str]) -> Correct:
        if "averages" in words:
            return Pairs.averages(self.config.vae.latent_channels)
        if "fitted" in words:
            return self.fitted
        names = words & LIFTS.keys()
        return self.by_frames(*names) if names else keep

    @cached_property
    def fitted(self) -> Pairs:
        """To clips that no row shows, at its own rate and at twice that."""
        known = gate.scenes_of(FAMILY, -1, 64)
        return Pairs.fitted(self.drawn(known, 1), self.drawn(known, 2))

    def by_frames(self, lift: str = "lines") -> ThroughFrames:
        return ThroughFrames(self.networks.vae, LIFTS[lift], self.at)

    def make(self, row: str, scenes: Sequence[Scene], seeds: Sequence[int],
             clips: int) -> list[Tensor]:
        """Frames of so many clips, b f h w 3: of the key video, then of denser ones."""
        words, settings = {*row.split("+")}, self.settings
        context = self.networks.encoder.encode([scene.prompt() for scene in scenes])
        guide = Guidance(self.networks.unet, [Branch(context)], settings)
        side, c = self.config.vae.factor, self.config.unet
        shape = c.in_channels, settings.height // side, settings.width // side
        each = [noises(shape, self.latents, clips, seed) for seed in seeds]
        window = c.frames if "windows" in words else 1 << 30

        def predict(timestep: float, x: Tensor, at: Tensor, stage: Stage) -> Tensor:
            at = torch.arange(len(at)) if "whole" in words else at
            if "outputs" not in words:
                return guide(x, timestep, at, stage)
            spans = attention.windows(x.shape[1], c.frames, c.overlap)
            v = torch.zeros_like(x)
            for (a, b), share in zip(spans, attention.fusion_matrix(spans)):
                v[:, a:b] += share[:, None, None, None] * guide(x[:, a:b], timestep, at[a:b], stage)
            return v

        xs = sample_dense(predict, self.config.sampler, settings.steps,
                          [torch.stack(e) for e in zip(*each)], window,
                          c.overlap if "windows" in words else 0, self.correction(words),
                          step_at(0.5, settings.steps) if "join" in words else 0,
                          self.by_frames().begin)
        return [self.frames(x) for x in xs]


def measured(frames: Tensor, keys: Tensor, scene: Scene, n: int, fps: float) -> dict[str, float]:
    """Measures of a denser clip, uint8 f h w 3, n frames for a key frame; fps: its own.

    keys: PSNR of the key frames, in dB. border: how much more the path turns where one latent's
    frames end than within them.
    """
    reading, size = read(frames), frames.shape[1]
    shown, path = gate.measures(reading, scene, fps), reading.path * size
    turns = (path[2:] - 2 * path[1:-1] + path[:-2]).square().sum(1)
    phase = torch.arange(1, len(path) - 1) % 4  # latents begin at 1
    border = turns[phase < 2].mean() / turns[phase >= 2].mean()
    names = "color right", "shape right", "direction right", "speed right"
    return {"keys": psnr(frames[::n], keys), **{name: shown[name] for name in names},
            **smoothness(reading, n, size), "jitter": jitter(reading, size),
            "border": border.sqrt().item()}


def line(row: str, all_of: Sequence[dict[str, float]]) -> str:
    """Means, and their standard errors."""
    parts = []
    for name in all_of[0]:
        x = torch.tensor([one[name] for one in all_of])
        if len(x := x[x.isfinite()]) > 1:
            parts.append(f"{name} {x.mean():.2f} ± {x.std() / len(x) ** 0.5:.2f} of {len(x)}")
    return f"{row}: " + ", ".join(parts)


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ckpt", type=Path, default=SHIPPED, help="default: the shipped one")
    add("--n", type=int, default=32, help="scenes (default: 32)")
    add("--rows", nargs="+", help="default: those of the table")
    add("--scale", type=int, choices=(2, 4), default=2, help="times the rate (default: 2)")
    add("--steps", type=int, default=25)
    add("--at", type=float, nargs="*", default=dense.AT, help="as examples.wan has it, or none")
    add("--interpolator", nargs="+", type=Path, default=[], metavar="FILE", help="rife.pt")
    add("--outdir", type=Path, default=Path("outputs/wan_rows"), help="of pictures")
    args = parser.parse_args()
    fillers = open_interpolators(args.interpolator, torch.device("cpu"), torch.float32)
    rows = args.rows or ["base", "truth", *fillers, *WORDS, "lines+join", "windows+lines"]
    for row in rows:
        words = row.split("+")
        if row not in ("base", "truth", *fillers) and (
                not {*words} <= {*WORDS} or any(len({*words} & {*g}) > 1 for g in GROUPS)):
            ways = " + ".join("|".join(group) for group in GROUPS)
            parser.error(f"there is no row {row!r}; use base, truth, {', '.join(fillers)}, or some "
                         f"of {ways}; an interpolator's row needs its file")
    maker = Maker(zerosmooth.load(args.ckpt, family=FAMILY), args.steps, args.at)
    args.outdir.mkdir(parents=True, exist_ok=True)
    scenes = gate.scenes_of(FAMILY, 0, args.n)
    for row in rows:
        n = 1 if row == "base" else args.scale
        found: list[dict[str, float]] = []
        for i in range(0, len(scenes), 8):
            some = scenes[i : i + 8]
            seeds = range(i, i + len(some))
            if row == "truth":
                made = maker.frames(maker.drawn(some, n))
                keys = made[:, ::n]
            else:
                clips = maker.make(row, some, seeds, 1 if row in fillers else n.bit_length())
                keys, made = clips[0], clips[-1]
            if row in fillers:
                made = torch.stack([fillers[row](x, n, "", 0) for x in keys])
            if i == 0:
                sheet = rearrange(made[:, : 4 * n + 1], "b f h w c -> (b h) (f w) c")
                write_picture(args.outdir / f"{row}.png", sheet.numpy())
            found += [measured(*one, n, n * maker.fps) for one in zip(made, keys, some)]
        print(line(row, found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
