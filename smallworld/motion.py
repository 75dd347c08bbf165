"""How smoothly a video of the small world moves, by what `read` sees. Lengths in pixels of the frames measured.

The inserted frames of a long video are those that are no key frames. What these measures cannot see: whether the key
frames themselves show what was asked (the gate does), and anything that is not the shape.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zerosmooth.metrics import psnr

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
    between = Between(len(reading.path), n)
    inserted = between.share > 0
    path, area, rgb = (x[: len(inserted)] for x in (reading.path * size, reading.area, reading.rgb * 255))
    lost = math.nan if reading.path.isnan().any() else 0.0
    return {
        "off path": (path - between(reading.path * size)).square().sum(1)[inserted].mean().sqrt().item() + lost,
        "area": (area / between(reading.area) - 1).abs()[inserted].mean().item() + lost,
        "color": (rgb - between(reading.rgb * 255)).norm(dim=1)[inserted].mean().item() + lost,
    }


class Between:
    """What lies linearly between the key frames of a video: of each frame up to the last key frame.

    frames: of the whole video, n for one key frame. share: f, of the way from one key frame to the next.
    """

    def __init__(self, frames: int, n: int) -> None:
        keys = -(-frames // n)
        frame = torch.arange((keys - 1) * n + 1)
        self.n, self.left, self.share = n, frame // n, frame % n / n
        self.right = (self.left + 1).clamp(max=keys - 1)

    def __call__(self, x: Tensor) -> Tensor:
        """x: f ..., something of each frame, of which the key frames' counts."""
        keys = x[:: self.n]
        return torch.lerp(keys[self.left], keys[self.right], self.share.view(-1, *[1] * (x.ndim - 1)))


def redrawn_psnr(frames: Tensor, reading: Reading, scene: Scene, n: int) -> dict[str, float]:
    """PSNR of frames against what they should show, drawn from what the key frames were measured to show, in dB.

    "redrawn": of the inserted frames, whose shape is drawn where uniform motion between the key frames around them
    puts it. "redrawn keys": of the key frames against themselves drawn again, which is as good as any frame of this
    video can get: its outlines and grounds are not the drawing's. NaN where the shape is lost in a key frame or none
    is seen. frames: uint8 f h w 3; scene: for its tail and its direction.
    """
    if reading.shape is None or reading.path[::n].isnan().any():
        return {"redrawn": float("nan"), "redrawn keys": float("nan")}
    size, between = frames.shape[1], Between(len(frames), n)
    path, radius = between(reading.path), between((reading.area / torch.pi).sqrt())
    ground = (frames.float() / 255).median(2, keepdim=True).values  # a grey a row
    image = between(ground).expand(-1, -1, size, -1)
    if scene.tail:
        behind = tails([scene], path[None], size)[0, ..., None]
        image = torch.lerp(image, torch.full_like(image, tail_color(scene)), behind)
    cover = coverage([reading.shape] * len(path), path[:, None], radius, size)[:, 0, ..., None]
    image = torch.lerp(image, between(reading.rgb)[:, None, None].expand_as(image), cover)
    image, frames, inserted = (image * 255).round().byte(), frames[: len(image)], between.share > 0
    return {
        "redrawn": psnr(frames[inserted], image[inserted]),
        "redrawn keys": psnr(frames[~inserted], image[~inserted]),
    }
