"""Colour correction (the paper's A.2): gives longer videos the colour tone of their key frames."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .predictions import lines


class ColorCorrected:
    """A sampler whose steps also match each stage's latents to those of the stage before.

    `step` must be called stage by stage, as `sample_cascade` does. key_frames: those of stage 0.
    """

    def __init__(self, sampler: Any, key_frames: int) -> None:
        self.sampler, self.key_frames = sampler, key_frames
        self.last: Any = None  # latents of the stage before

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sampler, name)

    def __len__(self) -> int:
        return len(self.sampler)

    def step(self, i: int, x: Tensor, x0: Tensor, noise: Tensor | None) -> Tensor:
        """x of the next step: b f c h w."""
        x = self.sampler.step(i, x, x0, noise)
        self.last = x if x.shape[1] == self.key_frames else match_color(x, self.last)
        return self.last


def match_color(x: Tensor, key: Tensor) -> Tensor:
    """Adaptive instance normalisation: every frame and channel of x gets the mean and deviation
    over space that key frames have there, interpolated linearly. x: b f c h w, key: b k c h w."""
    n = x.shape[1] // key.shape[1]
    mean, deviation = x.mean((-2, -1), keepdim=True), x.std((-2, -1), keepdim=True)
    key_mean, key_deviation = (
        lines(n, y) for y in (key.mean((-2, -1), keepdim=True), key.std((-2, -1), keepdim=True)))
    return (x - mean) / deviation.clamp(min=1e-6) * key_deviation + key_mean
