"""Measures small checkpoints on prompts or pictures of their world that nobody looked at, by rules on pixels.

    python -m smallworld.gate                               # all that ship: some minutes each on two cores
    python -m smallworld.gate --ckpt vc2-small --n 16 --fps 32       # does it obey its frame rate?

One line a measure: checkpoint, measure, value, limit; beside it the value of the true rendering sent through the same
autoencoder, which is what a perfect model would reach. Exit status 1 if a limit is missed. The world has 576 prompts,
and training has seen them all; what a checkpoint is asked here is new in its noise alone. First frames are new too.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

import zerosmooth
from zerosmooth.cascade import Cascade
from zerosmooth.checkpoint import shipped
from zerosmooth.family import Family
from zerosmooth.pipeline import Pipeline, Video
from zerosmooth.settings import Running, Settings

from .draw import MOTION, Scene, first_frame, frame_times, random_scene, render
from .read import Reading, read

LIMITS = {"color right": 0.98, "shape right": 0.90, "direction right": 0.90, "speed right": 0.80, "jumps a clip": 0.1}
IMAGE_LIMITS = LIMITS | {"shape right": 0.95}  # where the first frame is given


def scenes_of(family: Family, seed: int, n: int) -> list[Scene]:
    """Scenes that a checkpoint can be asked for."""
    rng = random.Random(f"gate/{seed}")
    return [random_scene(rng, tail="image" in family.takes) for _ in range(n)]


def paced(pipeline: Pipeline, cascade: Cascade) -> bool:
    """Whether a scene is asked for with its speed.

    A network that is not told the frame rate knows a speed by how far a shape goes from frame to frame, which is less
    where frames are denser: of a longer video it is not asked for one."""
    return pipeline.family.told_rate(pipeline.config) or not cascade.scales


def make(
    pipeline: Pipeline,
    scenes: Sequence[Scene],
    seeds: Sequence[int],
    settings: Settings,
    running: Running = Running(),
    speed: bool | None = None,
) -> list[Video]:
    """The scenes' videos, from their prompts in one batch, or from their first frames in one of each speed. speed:
    whether prompts tell it; None: if they are `paced`."""
    if "image" not in pipeline.family.takes:
        speed = paced(pipeline, settings.cascade) if speed is None else speed
        return pipeline.sample([s.prompt(speed) for s in scenes], settings, seeds=seeds, running=running)
    made: dict[int, Video] = {}
    for name, bucket in MOTION.items():
        if those := [i for i, scene in enumerate(scenes) if scene.speed == name]:
            images = [first_frame(scenes[i], settings.height) for i in those]
            own = replace(settings, motion_bucket_id=bucket)
            made |= zip(those, pipeline.sample(images, own, seeds=[seeds[i] for i in those], running=running))
    return [made[i] for i in range(len(scenes))]


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


def true_frames(pipeline: Pipeline, scene: Scene, frames: int, fps: float, chunk: int | None = None) -> Tensor:
    """The scene itself, encoded and decoded as a video of the checkpoint is: uint8 f h w 3. chunk: frames at a time."""
    video = render([scene], frame_times(frames, fps)[None], pipeline.config.defaults.height)[0]
    vae = pipeline.networks.vae
    latents = vae.encode((video * 2 - 1).to(pipeline.device, vae.dtype))
    return pipeline.decode(latents, chunk or pipeline.config.vae.decode_chunk_size)


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", nargs="+", default=shipped(), help="by name or file (default: all that ship)")
    parser.add_argument("--n", type=int, default=100, help="scenes (default: 100)")
    parser.add_argument("--seed", type=int, default=1000, help="of the scenes and the noise (default: 1000)")
    parser.add_argument("--fps", type=int, help="frames a second, as told and as measured (default: its own)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    args = parser.parse_args()
    passed = [gate(name, args.seed, args.n, args.device, args.fps) for name in args.ckpt]
    return int(not all(passed))


def gate(name: str, seed: int, n: int, device: str, fps: int | None = None) -> bool:
    """Print a checkpoint's lines. Returns whether it passes."""
    pipeline = zerosmooth.load(name, device)
    scenes = scenes_of(pipeline.family, seed, n)
    settings = pipeline.settings(scales=(), **({} if fps is None else {"fps": fps}))
    frames, fps = settings.cascade.frames, settings.fps
    ours, truth = [], []
    for i, scene in enumerate(tqdm(scenes, desc=str(name), leave=False)):
        (video,) = make(pipeline, [scene], [seed + i], settings)
        ours.append(read(video.frames[0]))
        truth.append(read(true_frames(pipeline, scene, frames, fps)))
    got, best = measures(ours, scenes, fps), measures(truth, scenes, fps)
    limits = IMAGE_LIMITS if "image" in pipeline.family.takes else LIMITS
    missed = False
    for measure, value in got.items():
        limit = limits.get(measure)
        bad = limit is not None and (value >= limit if measure == "jumps a clip" else value < limit)
        missed |= bad
        verdict = "  MISSED" if bad else ""
        print(f"{name}  {measure}  {value:.2f}  limit {limit or '-'}{verdict}  (true rendering {best[measure]:.2f})")
    return not missed


if __name__ == "__main__":
    sys.exit(main())
