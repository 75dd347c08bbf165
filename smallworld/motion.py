"""How smoothly a video of the small world moves, by what `read` sees. Lengths in pixels of the frames measured.

The inserted frames of a long video are those that are no key frames. What these measures cannot see: whether the key
frames themselves show what was asked (the gate does), and anything that is not the shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zerosmooth.metrics import psnr

from .draw import Scene, coverage, tail_color, tails
from .read import Reading


def smoothness(reading: Reading, n: int, size: int) -> dict[str, float]:
    """Measures of a video of n frames for one key frame; NaN where the shape is lost in a frame.

    jitter: root mean square of the path's second difference. off path: of the inserted frames' distance from uniform
    motion between the key frames around them. area: mean relative difference of the inserted frames' area from that
    of the key frames around them.
    """
    path, area = reading.path * size, reading.area
    keys = len(path) // n
    inside = (keys - 1) * n + 1  # frames behind the last key frame have only one neighbour
    share = (torch.arange(inside) % n / n)[:, None]
    left = (torch.arange(inside) // n).clamp(max=keys - 2) if keys > 1 else torch.zeros(inside, dtype=torch.long)
    right = (left + 1).clamp(max=keys - 1)
    inserted = share[:, 0] > 0
    uniform = torch.lerp(path[::n][left], path[::n][right], share)
    expected = torch.lerp(area[::n][left], area[::n][right], share[:, 0])
    second = path[2:] - 2 * path[1:-1] + path[:-2]
    return {
        "jitter": second.square().sum(1).mean().sqrt().item(),
        "off path": (path[:inside] - uniform).square().sum(1)[inserted].mean().sqrt().item(),
        "area": (area[:inside] / expected - 1).abs()[inserted].mean().item(),
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
    size, inside = frames.shape[1], (len(frames[::n]) - 1) * n + 1
    left = torch.arange(inside) // n
    right = (left + 1).clamp(max=len(frames[::n]) - 1)
    share = (torch.arange(inside) % n / n)[:, None]

    def between(keys: Tensor) -> Tensor:
        return torch.lerp(keys[left].flatten(1), keys[right].flatten(1), share).unflatten(1, keys.shape[1:])

    pixels = frames[::n].float() / 255
    path, radius = between(reading.path[::n]), between((reading.area[::n] / torch.pi).sqrt()[:, None])[:, 0]
    image = between(pixels.median(2, keepdim=True).values).expand(-1, -1, size, -1)  # ground: a grey a row
    if scene.tail:
        behind = tails([scene], path[None], size)[0, ..., None]
        image = torch.lerp(image, torch.full_like(image, tail_color(scene)), behind)
    cover = coverage([reading.shape] * inside, path[:, None], radius, size)[:, 0, ..., None]
    image = torch.lerp(image, reading.rgb.expand_as(image), cover)
    image = (image * 255).round().byte()
    inserted = torch.arange(inside) % n > 0
    return {
        "redrawn": psnr(frames[:inside][inserted], image[inserted]),
        "redrawn keys": psnr(frames[:inside][~inserted], image[~inserted]),
    }
