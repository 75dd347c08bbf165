"""The small world as `python -m evaluation --scenes` measures it: scenes, their true videos, and
what a video of one shows."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from evaluation.detectors import CLIP, Detector, protocol
from zerosmooth.checkpoint import Checkpoint
from zerosmooth.fields import UserError
from zerosmooth.pipeline import Pipeline
from zerosmooth.settings import Settings

from . import classifier, gate, interpolation
from .draw import Scene, frame_times, random_scene, render
from .motion import jitter, redrawn_psnr, smoothness
from .read import read

SHARES = ("color right", "shape right", "direction right", "speed right")
REFERENCES = 256  # true renderings for each frame rate, with which FVD compares


class SmallWorld:
    """interpolators: checkpoints that were trained on this world. The rest of its methods are
    functions of `gate`."""

    interpolators = (interpolation.SHIPPED,)
    detects = True  # has a detector and references of its own
    make, paced = staticmethod(gate.make), staticmethod(gate.paced)
    truth = staticmethod(gate.true_frames)

    def scenes(self, checkpoint: Checkpoint, seed: int, n: int) -> list[Scene]:
        """Scenes that a checkpoint can be asked for. UserError if there are none."""
        own = checkpoint.config.defaults
        if n < 1 or own.height != own.width:
            raise UserError("--scenes takes at least one, and a checkpoint of the small world, "
                            "whose videos are square")
        return gate.scenes_of(checkpoint.family, seed, n)

    def measures(self, pipeline: Pipeline, frames: Tensor, scene: Scene, n: int, fps: float,
                 paced: bool) -> dict[str, float]:
        """What a video shows and how it moves, by names of `tables.MEASURES`; NaN if the shape is
        lost. frames: uint8 f h w 3, n for each key frame; fps: theirs; paced: whether the scene's
        speed was asked for."""
        reading, size = read(frames), frames.shape[1]
        got = gate.measures(reading, scene, fps)
        got = {name: got[name] for name in SHARES if paced or name != "speed right"}
        got["lost"] = reading.path.isnan().any(1).float().mean().item()
        got["jitter"] = jitter(reading, size)
        if n > 1:
            got |= smoothness(reading, n, size) | redrawn_psnr(frames, reading, scene, n)
        return got

    def detector(self, device: torch.device, probabilities: bool) -> Detector:
        """Our own: of features, or of class probabilities."""
        network = classifier.load(device)

        def answer(clip: Tensor) -> Tensor:
            h = network.features(clip.movedim(1, -1) / 255)
            return network.probabilities(h) if probabilities else h

        what = "72 classes" if probabilities else f"{classifier.FEATURES} features"
        return Detector(answer, protocol(classifier.FILE, f"{what}, 0 to 1"), device)

    def references(self, checkpoint: Checkpoint, settings: Settings, frames: int, fps: float,
                   detector: Detector) -> Tensor:
        """Features n d of true videos of other scenes than those measured, with as many frames at
        this rate."""
        rng, tail = random.Random("reference"), "image" in checkpoint.family.takes
        scenes = [random_scene(rng, tail=tail) for _ in range(REFERENCES)]
        start = max(0, (frames - CLIP) // 2)  # of the frames that the detector looks at
        times = frame_times(frames, fps)[start : start + CLIP]
        clips = (render([scene], times[None], settings.height)[0] for scene in scenes)
        return torch.stack([detector((x.movedim(1, -1) * 255).round().byte()) for x in clips])
