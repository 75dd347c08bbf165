"""Reads a video of the small world by rules on pixels: colour, shape, and where the shape is in
every frame.

The ground is grey and the shape is not, so its pixels are those whose channels differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .draw import COLORS, DIRECTIONS, SHAPES, SPEEDS, coverage

STILL = 0.02  # sides a second, up to which a shape counts as still
CHROMA = 0.3  # largest minus smallest channel above which a pixel is the shape's; COLORS have 0.6


@dataclass(frozen=True)
class Reading:
    """color, shape: None if no colour is seen. path: f 2, the shape's centre in sides, NaN where
    unseen. area: f, share of the frame. likeness: intersection over union with the best shape's
    outline, mean over frames. rgb: f 3, the shape's mean colour, 0 to 1, NaN where unseen."""

    color: str | None
    shape: str | None
    path: Tensor
    area: Tensor
    likeness: float
    rgb: Tensor

    def velocity(self, fps: float) -> tuple[float, float]:
        """Least-squares x and y velocity in sides a second; zero if the shape is seen in fewer than
        two frames."""
        seen = ~self.path.isnan().any(1)
        if seen.sum() < 2:
            return 0.0, 0.0
        time = (torch.arange(len(self.path)) / fps)[seen]
        time = time - time.mean()
        slope = (time[:, None] * self.path[seen]).sum(0) / time.square().sum()
        return slope[0].item(), slope[1].item()

    def goes(self, direction: str, fps: float) -> bool:
        """Whether it moves, within 37 degrees of a direction."""
        vx, vy = self.velocity(fps)
        (dx, dy), speed = DIRECTIONS[direction], math.hypot(vx, vy)
        return speed > STILL and vx * dx + vy * dy > speed * math.cos(math.radians(37))

    def has_speed(self, speed: str, fps: float) -> bool:
        """Whether its speed is within a third of what a word asks for."""
        return abs(math.hypot(*self.velocity(fps)) - SPEEDS[speed]) <= SPEEDS[speed] / 3

    def jumps(self, speed: str, fps: float) -> int:
        """Steps of the centre that are over three times as long as true ones, or lack a shape at
        either end."""
        steps = self.path.diff(dim=0).norm(dim=1)
        return int((~(steps <= 3 * SPEEDS[speed] / fps)).sum())


def read(frames: Tensor) -> Reading:
    """frames: f h w 3, uint8 or 0 to 1, square."""
    x = frames.float() / 255 if frames.dtype == torch.uint8 else frames.float()
    size = x.shape[1]
    chroma = x.amax(-1) - x.amin(-1)
    mask = chroma > CHROMA  # f h w
    seen = mask.float().mean((1, 2)) > 0.005
    if not seen.any():
        unseen = torch.full((len(x), 3), math.nan)
        return Reading(None, None, unseen[:, :2], torch.zeros(len(x)), 0.0, unseen)
    grid = (torch.arange(size) + 0.5) / size
    core = mask & (chroma > 0.8 * chroma.amax((1, 2), keepdim=True))  # without mixed edges
    near = F.max_pool2d(mask.float()[:, None], 3, stride=1, padding=1)[:, 0]
    cover = near * (chroma / chroma[core].median()).clamp(max=1)  # of each pixel, edges partly
    area = cover.mean((1, 2))
    weight = cover / cover.sum((1, 2), keepdim=True)
    path = torch.stack([(weight.sum(1) * grid).sum(1), (weight.sum(2) * grid).sum(1)], dim=1)
    path[~seen] = math.nan

    inner = (core & seen[:, None, None]).float()[..., None]
    rgb = (x * inner).sum((1, 2)) / inner.sum((1, 2))  # 0 / 0 where unseen
    mean = (x * inner).sum((0, 1, 2)) / inner.sum()
    color = min(COLORS, key=lambda name: (torch.tensor(COLORS[name]) - mean).norm().item())

    radius = (area[seen] / math.pi).sqrt()
    likeness = {}
    for shape in SHAPES:
        outline = coverage([shape] * len(radius), path[seen, None], radius, size)[:, 0] > 0.5
        overlap = (outline & mask[seen]).sum((1, 2)) / (outline | mask[seen]).sum((1, 2))
        likeness[shape] = overlap.mean().item()
    best = max(likeness, key=likeness.__getitem__)
    return Reading(color, best, path, area, likeness[best], rgb)
