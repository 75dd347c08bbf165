"""Subjects whose truth is known, as `python -m evaluation` takes them: `smallworld.world` is such."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from zerosmooth.checkpoint import Checkpoint
from zerosmooth.pipeline import Pipeline, Video
from zerosmooth.settings import Running, Settings

from .detectors import Detector


class World(Protocol):
    """A scene is whatever the world says it is; `scene.prompt()` is what people call it. interpolators: checkpoints of
    some that were trained on it, for their rows where the user brings no others."""

    interpolators: Sequence[Path]

    def scenes(self, checkpoint: Checkpoint, seed: int, n: int) -> list[Any]:
        """Scenes that a checkpoint can be asked for. ValueError if there are none."""
        ...

    def make(
        self,
        pipeline: Pipeline,
        scenes: Sequence[Any],
        seeds: Sequence[int],
        settings: Settings,
        running: Running,
        paced: bool,
    ) -> list[Video]:
        """The checkpoint's videos of scenes, a seed each, as one batch where that can be. paced: whether prompts ask
        for the scenes' speeds."""
        ...

    def truth(self, pipeline: Pipeline, scene: Any, frames: int, fps: float, settings: Settings) -> Tensor:
        """The scene itself, sent through the checkpoint's autoencoder: uint8 f h w 3."""
        ...

    def measures(self, frames: Tensor, scene: Any, n: int, fps: float, paced: bool) -> dict[str, float]:
        """What a video shows and how it moves, by names of `tables.MEASURES`. frames: uint8 f h w 3, n for one key
        frame; fps: theirs; paced: whether the scene's speed was asked for."""
        ...

    def paced(self, pipeline: Pipeline, settings: Settings) -> bool:
        """Whether a scene is asked for with its speed."""
        ...

    def detector(self, device: torch.device, probabilities: bool) -> Detector:
        """The world's own, of features or of classes' probabilities."""
        ...

    def references(
        self, checkpoint: Checkpoint, settings: Settings, frames: int, fps: float, detector: Detector
    ) -> Tensor:
        """Features of other scenes than those measured, of as many frames at this rate: n d."""
        ...
