"""The features of the videos that FVD compares with: true renderings of the small world, or a folder of real videos."""

from __future__ import annotations

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


def measure_folder(real: Path, into: Path, detector: Detector, rank: int, world: int) -> None:
    """Write the features of this process's share of a folder's videos, those that are not there yet."""
    videos = find_videos(real)[rank::world]
    into.mkdir(parents=True, exist_ok=True)
    for path in tqdm(videos, desc="real videos", disable=rank > 0):
        name = "_".join(path.relative_to(real).parts)
        if not (into / f"{name}.features").exists():
            write_tensors(into / f"{name}.features", {"FVD": detector(torch.from_numpy(read_video(path)))})


def of_folder(plan: Plan, measured: Path) -> dict[int, Tensor]:
    """The features that `measure_folder` wrote, the same for every stage: n d."""
    features = torch.stack([load_file(path)["FVD"] for path in sorted(measured.glob("*.features"))])
    return {stage: features for stage in range(plan.base.stages)}
