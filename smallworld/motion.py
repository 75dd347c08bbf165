"""How smoothly a video of the small world moves, by what `read` sees. Lengths in pixels of the frames measured.

The inserted frames of a long video are those that are no key frames. What these measures cannot see: whether the key
frames themselves show what was asked (the gate does), and anything that is not the shape.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evaluation.metrics import between, psnr

from .draw import Scene, coverage, tail_color, tails
from .read import Reading


def jitter(reading: Reading, size: int) -> float:
    """Root mean square of the path's second difference; NaN where the shape is lost in a frame."""
    path = reading.path * size
    return (path[2:] - 2 * path[1:-1] + path[:-2]).square().sum(1).mean().sqrt().item()


def smoothness(reading: Reading, n: int, size: int) -> dict[str, float]:
    """Measures of the inserted frames of a video of n frames for one key frame; NaN where the shape is lost in a frame.

    off path: root mean square of their distance from uniform motion between the key frames around them. area: mean
    relative difference of their area from what lies between those of the key frames. color: mean distance of their
    colour, of 255, likewise.
    """
    path, area, rgb = reading.path * size, reading.area, reading.rgb * 255
    path_between, area_between, rgb_between = (between(x, n) for x in (path, area, rgb))
    f = len(path_between)
    inserted = torch.arange(f) % n > 0
    lost = math.nan if reading.path.isnan().any() else 0.0
    return {
        "off path": (path[:f] - path_between).square().sum(1)[inserted].mean().sqrt().item() + lost,
        "area": (area[:f] / area_between - 1).abs()[inserted].mean().item() + lost,
        "color": (rgb[:f] - rgb_between).norm(dim=1)[inserted].mean().item() + lost,
    }


def redrawn_psnr(frames: Tensor, reading: Reading, scene: Scene, n: int) -> dict[str, float]:
    """PSNR of frames against what they should show, drawn from what the key frames were measured to show, in dB.

    "redrawn": of the inserted frames, whose shape is drawn where uniform motion between the key frames around them
    puts it. "redrawn keys": of the key frames against themselves drawn again, which is as good as any frame of this
    video can get: its outlines and grounds are not the drawing's. NaN where the shape is lost in a key frame or none
    is seen. frames: uint8 f h w 3; scene: for its tail and its direction.
    """
    if reading.shape is None or reading.path[::n].isnan().any():
        return {"redrawn": float("nan"), "redrawn keys": float("nan")}
    size = frames.shape[1]
    path, radius = between(reading.path, n), between((reading.area / torch.pi).sqrt(), n)
    ground = (frames.float() / 255).median(2, keepdim=True).values  # a grey a row
    image = between(ground, n).expand(-1, -1, size, -1)
    if scene.tail:
        behind = tails([scene], path[None], size)[0, ..., None]
        image = torch.lerp(image, torch.full_like(image, tail_color(scene)), behind)
    cover = coverage([reading.shape] * len(path), path[:, None], radius, size)[:, 0, ..., None]
    image = torch.lerp(image, between(reading.rgb, n)[:, None, None].expand_as(image), cover)
    image, frames, inserted = (image * 255).round().byte(), frames[: len(image)], torch.arange(len(image)) % n > 0
    return {
        "redrawn": psnr(frames[inserted], image[inserted]),
        "redrawn keys": psnr(frames[~inserted], image[~inserted]),
    }
