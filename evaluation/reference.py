"""The features of the videos that FVD compares with: true renderings of the small world, or a folder of real videos."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from smallworld.draw import frame_times, random_scene, render
from zerosmooth.config import ModelConfig
from zerosmooth.results import write_tensors
from zerosmooth.video import find_videos, read_video

from .detectors import CLIP, Detector
from .jobs import Plan

SCENES = 256  # true renderings a frame rate


def of_small_world(plan: Plan, config: ModelConfig, detector: Detector) -> dict[int, Tensor]:
    """Features of other scenes than those measured, by stage: n d."""
    rng = random.Random("reference")
    scenes = [random_scene(rng, tail=config.takes_images) for _ in range(SCENES)]
    features = {}
    for stage in range(plan.base.stages):
        frames, fps = plan.base.frames_of(stage), plan.settings["fps"] * plan.base.rate(stage)
        times = frame_times(frames, fps)[max(0, (frames - CLIP) // 2) :][:CLIP]  # no more than the detector looks at
        clips = (render([scene], times[None], config.defaults.height)[0].movedim(1, -1) for scene in scenes)
        features[stage] = torch.stack([detector((clip * 255).round().byte()) for clip in clips])
    return features


class RealVideos:
    """The features of a folder's videos, kept in `into`, a file a video. ValueError if it has fewer than two."""

    def __init__(self, folder: Path, into: Path, detector: Detector) -> None:
        self.folder, self.detector = folder, detector
        self.videos = find_videos(folder)
        if len(self.videos) < 2:
            raise ValueError(
                f"{folder} has one video; FVD needs two real ones or more, and means something of hundreds"
            )
        which = f"{folder.resolve()}, {detector.protocol}"
        self.into = into / hashlib.sha256(which.encode()).hexdigest()[:8]

    def measure(self, rank: int = 0, world: int = 1) -> None:
        """Write this process's share of the features, those that are not there yet."""
        self.into.mkdir(parents=True, exist_ok=True)
        for path in tqdm(self.videos[rank::world], desc="real videos", disable=rank > 0):
            if not (file := self._file(path)).exists():
                write_tensors(file, {"FVD": self.detector(torch.from_numpy(read_video(path)))})

    def features(self) -> Tensor:
        """n d, once all are measured."""
        return torch.stack([load_file(self._file(path))["FVD"] for path in self.videos])

    def _file(self, path: Path) -> Path:
        facts = path.stat()  # a video that was replaced is measured again
        which = f"{path.relative_to(self.folder)}, {facts.st_size}, {facts.st_mtime_ns}"
        name = hashlib.sha256(which.encode()).hexdigest()[:16]
        return self.into / f"{path.stem}-{name}.features"
