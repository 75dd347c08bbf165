"""The small world as `python -m evaluation --scenes` measures it: scenes, their truth, what a video of one shows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.detectors import CLIP, Detector, protocol
from zerosmooth.checkpoint import Checkpoint
from zerosmooth.pipeline import Pipeline, Video
from zerosmooth.settings import Running, Settings

from . import classifier, gate, interpolation
from .draw import Scene, frame_times, random_scene, render
from .motion import jitter, redrawn_psnr, smoothness
from .read import read

REFERENCES = 256  # true renderings a frame rate that FVD compares with


class SmallWorld:
    """An `evaluation.world.World`."""

    interpolators: Sequence[Path] = (interpolation.SHIPPED,)

    def scenes(self, checkpoint: Checkpoint, seed: int, n: int) -> list[Any]:
        own = checkpoint.config.defaults
        if n < 1 or own.height != own.width:
            raise ValueError(
                "--scenes takes at least one, and a checkpoint of the small world, whose videos are square"
            )
        return gate.scenes_of(checkpoint.family, seed, n)

    def make(
        self,
        pipeline: Pipeline,
        scenes: Sequence[Scene],
        seeds: Sequence[int],
        settings: Settings,
        running: Running,
        paced: bool,
    ) -> list[Video]:
        return gate.make(pipeline, scenes, seeds, settings, running, paced)

    def truth(self, pipeline: Pipeline, scene: Scene, frames: int, fps: float, settings: Settings) -> Tensor:
        return gate.true_frames(pipeline, scene, frames, fps, settings.decode_chunk_size)

    def paced(self, pipeline: Pipeline, settings: Settings) -> bool:
        return gate.paced(pipeline, settings.cascade)

    def measures(self, frames: Tensor, scene: Scene, n: int, fps: float, paced: bool) -> dict[str, float]:
        """NaN where the shape is lost."""
        reading, size = read(frames), frames.shape[1]
        got = {
            "color right": float(reading.color == scene.color),
            "shape right": float(reading.shape == scene.shape),
            "direction right": float(reading.goes(scene.direction, fps)),
            "lost": reading.path.isnan().any(1).float().mean().item(),
            "jitter": jitter(reading, size),
        }
        if paced:
            got["speed right"] = float(reading.has_speed(scene.speed, fps))
        if n > 1:
            got |= smoothness(reading, n, size) | redrawn_psnr(frames, reading, scene, n)
        return got

    def detector(self, device: torch.device, probabilities: bool) -> Detector:
        network = classifier.load(device)

        def answer(clip: Tensor) -> Tensor:
            h = network.features(clip.movedim(1, -1) / 255)
            return network.probabilities(h) if probabilities else h

        what = "72 classes" if probabilities else f"{classifier.FEATURES} features"
        return Detector(answer, protocol(classifier.FILE, f"{what}, 0 to 1"), device)

    def references(
        self, checkpoint: Checkpoint, settings: Settings, frames: int, fps: float, detector: Detector
    ) -> Tensor:
        rng = random.Random("reference")
        scenes = [random_scene(rng, tail="image" in checkpoint.family.takes) for _ in range(REFERENCES)]
        times = frame_times(frames, fps)[max(0, (frames - CLIP) // 2) :][:CLIP]  # no more than the detector looks at
        clips = (render([scene], times[None], settings.height)[0].movedim(1, -1) for scene in scenes)
        return torch.stack([detector((clip * 255).round().byte()) for clip in clips])
