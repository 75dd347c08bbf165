"""What a correction makes of motion that is faster than the small world's own.

    python -m smallworld.held --every 4 8 --lifts lines carried    # vc2-small, 16 scenes, minutes

Four times the frames in one stage, where only every 4th or 8th key frame corrects. The key frames
held out are what should lie between: so far apart, shapes move one to three latent pixels.

A line a lift. held: PSNR of held-out frames against the base video's; off: distance of the shape
from where it is there, in pixels; ghost: share of the shape's colour over 3 pixels beside its
outline; solid: colour in its core over that of frames that correct.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

import zerosmooth
from evaluation.metrics import psnr
from zerosmooth.bus import Stage
from zerosmooth.cascade import Cascade, nested_noise, sample_cascade
from zerosmooth.extensions import LIFTS
from zerosmooth.extensions.predictions import Lift, lines
from zerosmooth.guidance import Guidance, Inputs
from zerosmooth.operators import S, back_project
from zerosmooth.pipeline import Pipeline

from .draw import coverage
from .gate import scenes_of
from .read import Reading, read

N = 4  # frames for one key frame


def every(m: int, lift: Lift) -> Callable[[int, list[Tensor]], list[Tensor]]:
    """The hook by which every m-th key frame corrects."""

    def hook(step: int, x0s: list[Tensor]) -> list[Tensor]:
        y, M = x0s[0][:, ::m], S(N * m)
        x0 = x0s[1] + lift(M.n, y - M.measure(x0s[1]), y)
        return [x0s[0], back_project(x0, y, M)]

    return hook


def videos(pipeline: Pipeline, prompt: str, seed: int, m: int, lift: Lift) -> list[Tensor]:
    """The base video and the dense one: uint8 f h w 3."""
    settings = pipeline.settings(scale=1)
    cascade = Cascade(settings.key_frames, (N,), strength=0.0)
    rates = [settings.fps, N * settings.fps]
    sampler = pipeline.config.sampler.sampler(settings.steps, settings.eta)
    branches = pipeline.family.branches(pipeline.networks, Inputs([prompt]), settings)
    guided = Guidance(pipeline.networks.unet, branches, settings)
    told = [pipeline.family.condition(pipeline.config, float(fps), settings) for fps in rates]
    shape = pipeline._latent_shape(settings)

    def network(step: int, s: int, x: Tensor, stage: Stage | None) -> Tensor:
        return guided(x, sampler.timestep(step), told[s], stage)

    def noise(step: int) -> Tensor:
        return nested_noise(shape, cascade.key_frames, cascade.scales, seed, step)[None]

    with torch.inference_mode():
        xs = sample_cascade(network, sampler, cascade, noise, cascade.bus(), every(m, lift))
    return [pipeline.decode(x[0]) for x in xs]


def measure(base: Tensor, dense: Tensor, m: int) -> dict[str, float]:
    """See above. Empty if the shape is not seen in every frame of the base video."""
    at, got = read(base), read(dense)
    if at.shape is None or at.path.isnan().any():
        return {}
    last = (len(base) - 1) // m * m  # the last key frame that corrects
    held = torch.arange(last)[torch.arange(last) % m > 0]
    off = (got.path[::N] - at.path)[held].norm(dim=1).mean().item() * base.shape[1]
    ghost, solid = copies(dense[: last * N], at)
    keys = torch.arange(last * N) % (N * m) == 0
    return {"held": psnr(dense[::N][held], base[held]), "off": off,
            "ghost": ghost[~keys].mean().item(),
            "solid": (solid[~keys].mean() / solid[keys].mean()).item()}


def copies(frames: Tensor, base: Reading) -> tuple[Tensor, Tensor]:
    """Ghost and colour in the core of each frame, by where the base video has the shape."""
    assert base.shape is not None
    size = frames.shape[1]
    path = lines(N, base.path[None])[0, : len(frames)]
    radius = (lines(N, base.area[None])[0, : len(frames)] / torch.pi).sqrt()
    chroma = ((frames.float().amax(-1) - frames.float().amin(-1)) / 255 - 0.1).clamp(min=0)
    near, core = (coverage([base.shape] * len(path), path[:, None], r, size)[:, 0]
                  for r in (radius + 3 / size, radius * 0.6))
    ghost = (chroma * (1 - near)).sum((1, 2)) / chroma.sum((1, 2)).clamp(min=1e-6)
    return ghost, (chroma * core).sum((1, 2)) / core.sum((1, 2))


def main() -> None:
    parser = argparse.ArgumentParser("python -m smallworld.held", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="vc2-small", help="of prompts (default: vc2-small)")
    parser.add_argument("--every", type=int, nargs="+", default=[4, 8], help="default: 4 8")
    parser.add_argument("--lifts", nargs="+", default=list(LIFTS), choices=LIFTS)
    parser.add_argument("--scenes", type=int, default=16, help="default: 16")
    parser.add_argument("--seed", type=int, default=8000, help="default: 8000")
    args = parser.parse_args()
    pipeline = zerosmooth.load(args.ckpt)
    scenes = scenes_of(pipeline.family, args.seed, args.scenes)
    for m in args.every:
        for name in args.lifts:
            made = [videos(pipeline, scene.prompt(), args.seed + i, m, LIFTS[name])
                    for i, scene in enumerate(scenes)]
            found = [got for base, dense in made if (got := measure(base, dense, m))]
            mean = {key: sum(got[key] for got in found) / len(found) for key in found[0]}
            print(f"{args.ckpt}, every {m}th, {name}: held {mean['held']:.1f} dB, off "
                  f"{mean['off']:.2f} pixels, ghost {mean['ghost']:.3f}, solid "
                  f"{mean['solid']:.2f} ({len(found)} scenes)", flush=True)


if __name__ == "__main__":
    main()
