"""Measures a small checkpoint on prompts of its world and seeds that nobody looked at, by rules on pixels.

    python -m smallworld.gate                                   # what the key frames show
    python -m smallworld.gate --key_frames zerosmooth direct    # how well longer videos keep them, instead

One line a measure: checkpoint, measure, value, limit; beside it the value of the true rendering sent through the same
autoencoder, which is what a perfect model would reach. Exit status 1 if a limit is missed. The world has 576 prompts,
and training has seen them all; what a checkpoint is asked here is new in its noise alone.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import zerosmooth
from zerosmooth.cascade import METHODS, Cascade
from zerosmooth.config import ModelConfig
from zerosmooth.metrics import psnr
from zerosmooth.pipeline import Pipeline, Video, default_chunk

from .draw import MOTION, Scene, first_frame, frame_times, random_scene, render
from .read import Reading, read

LIMITS = {"color right": 0.98, "shape right": 0.90, "direction right": 0.90, "speed right": 0.80, "jumps a clip": 0.1}
IMAGE_LIMITS = LIMITS | {"shape right": 0.95}  # where the first frame is given


def scenes_of(config: ModelConfig, seed: int, n: int) -> list[Scene]:
    """Scenes that a checkpoint can be asked for."""
    rng = random.Random(f"gate/{seed}")
    return [random_scene(rng, tail=config.takes_images) for _ in range(n)]


def make(pipeline: Pipeline, scene: Scene, seed: int, cascade: Cascade, **settings: Any) -> Video:
    """The scene's video, from its prompt, or from its first frame and its speed. settings: of `Pipeline.sample`."""
    if not pipeline.config.takes_images:
        return pipeline.sample(scene.prompt(), seeds=seed, cascade=cascade, **settings)[0]
    image = first_frame(scene, pipeline.config.defaults.height)
    settings |= {"motion_bucket_id": MOTION[scene.speed]}
    return pipeline.sample(images=[image], seeds=seed, cascade=cascade, **settings)[0]


def measures(readings: Sequence[Reading], scenes: Sequence[Scene], fps: float) -> dict[str, float]:
    """Shares of videos that are right, and jumps a video."""
    pairs = list(zip(readings, scenes))
    counts: dict[str, list[float]] = {
        "color right": [r.color == s.color for r, s in pairs],
        "shape right": [r.shape == s.shape for r, s in pairs],
        "direction right": [r.goes(s.direction, fps) for r, s in pairs],
        "speed right": [r.has_speed(s.speed, fps) for r, s in pairs],
        "jumps a clip": [r.jumps(s.speed, fps) for r, s in pairs],
        "likeness of shape": [r.likeness for r in readings],
    }
    return {name: sum(values) / len(values) for name, values in counts.items()}


def true_frames(pipeline: Pipeline, scene: Scene, frames: int, fps: float) -> Tensor:
    """The scene itself, encoded and decoded as a video of the checkpoint is: uint8 f h w 3."""
    video = render([scene], frame_times(frames, fps)[None], pipeline.config.defaults.height)[0]
    vae = pipeline.networks.vae
    latents = vae.encode((video * 2 - 1).to(pipeline.device, vae.dtype))
    return pipeline.decode(latents, default_chunk(pipeline.config))


def key_frame_psnr(
    pipeline: Pipeline, scenes: Sequence[Scene], seed: int, method: str, scales: tuple[int, ...]
) -> list[Tensor]:
    """For each further stage, the PSNR of its key frames against the base video, one value a scene."""
    values: list[list[float]] = [[] for _ in scales]
    for i, scene in enumerate(tqdm(scenes, desc=method, leave=False)):
        cascade = Cascade(pipeline.config.unet.frames, scales, method=method)
        video = make(pipeline, scene, seed + i, cascade)
        for stage, x in enumerate(video.frames[1:], start=1):
            values[stage - 1].append(psnr(x[:: cascade.rate(stage)], video.frames[0]))
    return [torch.tensor(v) for v in values]


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="vc2-small", help="a small checkpoint, by name or file (default: vc2-small)")
    parser.add_argument("--n", type=int, default=100, help="scenes (default: 100)")
    parser.add_argument("--seed", type=int, default=1000, help="of the scenes and the noise (default: 1000)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument(
        "--key_frames", nargs="+", choices=METHODS, metavar="METHOD", help="measure key frames, not the gate"
    )
    args = parser.parse_args()
    pipeline = zerosmooth.load(args.ckpt, args.device)
    scenes = scenes_of(pipeline.config, args.seed, args.n)
    frames, fps = pipeline.config.unet.frames, pipeline.config.defaults.fps

    if args.key_frames:
        print("key frames against the base video, PSNR in dB (mean, standard error)")
        for method in args.key_frames:
            for stage, v in enumerate(key_frame_psnr(pipeline, scenes, args.seed, method, (2, 2)), start=1):
                error = v.std() / len(v) ** 0.5
                print(f"{args.ckpt}  {method} {frames * 2**stage} frames  {v.mean():.2f} +- {error:.2f}", flush=True)
        return 0

    ours, truth = [], []
    for i, scene in enumerate(tqdm(scenes, leave=False)):
        video = make(pipeline, scene, args.seed + i, Cascade(frames, ()))
        ours.append(read(video.frames[0]))
        truth.append(read(true_frames(pipeline, scene, frames, fps)))
    got, best = measures(ours, scenes, fps), measures(truth, scenes, fps)
    limits = IMAGE_LIMITS if pipeline.config.takes_images else LIMITS
    missed = False
    for name, value in got.items():
        limit = limits.get(name)
        bad = limit is not None and (value >= limit if name == "jumps a clip" else value < limit)
        missed |= bad
        verdict = "  MISSED" if bad else ""
        print(f"{args.ckpt}  {name}  {value:.2f}  limit {limit or '-'}{verdict}  (true rendering {best[name]:.2f})")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
