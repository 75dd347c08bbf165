"""How smoothly a video of the small world moves, as `read` sees it. Lengths are in pixels.

Inserted frames are those of a long video that are not key frames. What these measures cannot see:
whether the key frames show what was asked for (the gate does), and anything but the shape.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evaluation.metrics import between, psnr

from .draw import Scene, coverage, tail_color, tails
from .read import Reading


def jitter(reading: Reading, size: int) -> float:
    """Root mean square of the path's second difference; NaN if the shape is lost in a frame."""
    path = reading.path * size
    return (path[2:] - 2 * path[1:-1] + path[:-2]).square().sum(1).mean().sqrt().item()


def smoothness(reading: Reading, n: int, size: int) -> dict[str, float]:
    """Measures of the inserted frames, against what lies linearly between the key frames around
    them; NaN if the shape is lost in a frame. n: frames for each key frame.

    off path: root mean square distance of their centres. area: mean relative difference of their
    areas. color: mean distance of their colours, of 255.
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
    """PSNR in dB of frames against drawings of what they should show, by what the key frames were
    measured to show; NaN if no shape is seen in a key frame.

    "redrawn": of the inserted frames, with the shape where uniform motion between the key frames
    around them puts it. "redrawn keys": of the key frames, which no frame of this video can
    surpass, since its outlines and grounds are not the drawing's. frames: uint8 f h w 3; scene: for
    its tail and its direction.
    """
    if reading.shape is None or reading.path[::n].isnan().any():
        return {"redrawn": math.nan, "redrawn keys": math.nan}
    size = frames.shape[1]
    path, radius = between(reading.path, n), between((reading.area / torch.pi).sqrt(), n)
    ground = (frames.float() / 255).median(2, keepdim=True).values  # a grey for each row
    image = between(ground, n).expand(-1, -1, size, -1)
    if scene.tail:
        behind = tails([scene], path[None], size)[0, ..., None]
        image = torch.lerp(image, torch.full_like(image, tail_color(scene)), behind)
    cover = coverage([reading.shape] * len(path), path[:, None], radius, size)[:, 0, ..., None]
    image = torch.lerp(image, between(reading.rgb, n)[:, None, None].expand_as(image), cover)
    image, frames = (image * 255).round().byte(), frames[: len(image)]
    keys = torch.arange(len(image)) % n == 0
    return {"redrawn": psnr(frames[~keys], image[~keys]),
            "redrawn keys": psnr(frames[keys], image[keys])}
