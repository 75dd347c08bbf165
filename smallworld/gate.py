"""Measures small checkpoints on prompts or pictures of their world, by rules on pixels.

    python -m smallworld.gate                        # all that ship: some minutes each on two cores
    python -m smallworld.gate --ckpt vc2-small --n 16 --fps 32       # does it obey its frame rate?
    python -m smallworld.gate --ckpt smallworld/latte-small.safetensors

One line a measure: checkpoint, measure, value, limit, and the value of the true rendering through
the same autoencoder, which a perfect model would reach. Exit status 1 if a limit is missed. The
world has only 576 prompts, and training has seen them all; new to a checkpoint are the noise and
the first frames.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import zerosmooth
from zerosmooth.checkpoint import find, read_header, shipped
from zerosmooth.family import Family
from zerosmooth.pipeline import Pipeline, Video
from zerosmooth.settings import Running, Settings

from . import recipes
from .draw import MOTION, Scene, first_frame, frame_times, random_scene, render
from .read import Reading, read

LIMITS = {"color right": 0.98, "shape right": 0.90, "direction right": 0.90, "speed right": 0.80,
          "jumps a clip": 0.1}
BELOW = ("jumps a clip", "off path")  # what must stay below its limit; the rest must reach it
IMAGE_LIMITS = LIMITS | {"shape right": 0.95}  # where the first frame is given


def scenes_of(family: Family, seed: int, n: int) -> list[Scene]:
    """Scenes that a checkpoint can be asked for."""
    rng = random.Random(f"gate/{seed}")
    return [random_scene(rng, tail="image" in family.takes) for _ in range(n)]


def paced(pipeline: Pipeline, settings: Settings) -> bool:
    """Whether a scene is asked for with its speed.

    A network that is not told the frame rate knows a speed by how far a shape moves from frame to
    frame, which is less where frames are denser. So a longer video of it is asked for without.
    """
    return pipeline.family.told_rate(pipeline.config) or settings.scale == 1


def make(pipeline: Pipeline, scenes: Sequence[Scene], seeds: Sequence[int], settings: Settings,
         running: Running = Running(), speed: bool | None = None) -> list[Video]:
    """The scenes' videos: from their prompts, in one batch, or from their first frames, in one for
    each speed. speed: whether prompts tell it; None: if they are `paced`."""
    if "image" not in pipeline.family.takes:
        speed = paced(pipeline, settings) if speed is None else speed
        prompts = [scene.prompt(speed) for scene in scenes]
        return pipeline.sample(prompts, settings, seeds=seeds, running=running)
    made: dict[int, Video] = {}
    for name, bucket in MOTION.items():
        if those := [i for i, scene in enumerate(scenes) if scene.speed == name]:
            images = [first_frame(scenes[i], settings.height) for i in those]
            own = replace(settings, motion_bucket_id=bucket)
            seeds_of = [seeds[i] for i in those]
            made |= zip(those, pipeline.sample(images, own, seeds=seeds_of, running=running))
    return [made[i] for i in range(len(scenes))]


def measures(reading: Reading, scene: Scene, fps: float) -> dict[str, float]:
    """What a video shows right, 0 or 1 each; its jumps; its likeness to the shape."""
    return {
        "color right": float(reading.color == scene.color),
        "shape right": float(reading.shape == scene.shape),
        "direction right": float(reading.goes(scene.direction, fps)),
        "speed right": float(reading.has_speed(scene.speed, fps)),
        "jumps a clip": reading.jumps(scene.speed, fps),
        "likeness of shape": reading.likeness,
    }


def means(videos: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each measure over all videos."""
    return {name: sum(video[name] for video in videos) / len(videos) for name in videos[0]}


def true_frames(pipeline: Pipeline, scene: Scene, frames: int, fps: float, chunk: int) -> Tensor:
    """The scene itself through the checkpoint's autoencoder: uint8 f h w 3. chunk: frames decoded
    at a time."""
    size, vae = pipeline.config.defaults.height, pipeline.networks.vae
    video = render([scene], frame_times(frames, fps)[None], size)[0]
    latents = vae.encode((video * 2 - 1).to(pipeline.device, vae.dtype))
    return pipeline.decode(latents, chunk)


def verdict(name: str, got: dict[str, float], limits: dict[str, float],
            beside: dict[str, dict[str, float]]) -> bool:
    """Print a checkpoint's measures, and what others have of them. Whether it keeps the limits."""
    kept = True
    for measure, value in got.items():
        limit, below = limits.get(measure), measure in BELOW
        missed = limit is not None and not (value < limit if below else value >= limit)
        kept &= not missed
        others = ", ".join(f"{other} {values[measure]:.2f}" for other, values in beside.items())
        print(f"{name}  {measure}  {value:.2f}  limit {limit or '-'}{'  MISSED' * missed}  "
              f"({others})")
    return kept


def gate(name: str, seed: int, n: int, device: str, fps: int | None = None) -> bool:
    """Print a checkpoint's lines. Whether it passes."""
    own = read_header(find(name)).metadata.get("family", "")
    pipeline = zerosmooth.load(name, device, family=recipes.FAMILIES.get(own))
    scenes = scenes_of(pipeline.family, seed, n)
    settings = pipeline.settings(scale=1, **({} if fps is None else {"fps": fps}))
    ours: list[dict[str, float]] = []
    truth: list[dict[str, float]] = []
    for i, scene in enumerate(tqdm(scenes, desc=str(name), leave=False)):
        (video,) = make(pipeline, [scene], [seed + i], settings)
        frames = pipeline.family.frames(pipeline.config, settings.key_frames)
        best = true_frames(pipeline, scene, frames, settings.fps, settings.decode_chunk_size)
        for found, shown in ((ours, video.frames[0]), (truth, best)):
            found.append(measures(read(shown), scene, settings.fps))
    limits = IMAGE_LIMITS if "image" in pipeline.family.takes else LIMITS
    return verdict(name, means(ours), limits, {"true rendering": means(truth)})


def arguments(about: str | None, **ckpt: Any) -> argparse.ArgumentParser:
    """The flags of a gate. ckpt: of its flag of that name."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", **ckpt)
    parser.add_argument("--n", type=int, default=100, help="scenes (default: 100)")
    parser.add_argument("--seed", type=int, default=1000, help="of scenes, noise (default: 1000)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    return parser


@torch.inference_mode()
def main() -> int:
    parser = arguments(__doc__, nargs="+", default=shipped(), help="default: all that ship")
    parser.add_argument("--fps", type=int, help="as told and as measured (default: its own)")
    args = parser.parse_args()
    return int(not all([gate(name, args.seed, args.n, args.device, args.fps)
                        for name in args.ckpt]))


if __name__ == "__main__":
    sys.exit(main())
