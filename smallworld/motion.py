"""How smoothly a video of the small world moves, by what `read` sees. Lengths in pixels of the frames measured.

The inserted frames of a long video are those that are no key frames. What these measures cannot see: whether the key
frames themselves show what was asked (the gate does), and anything that is not the shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zerosmooth.metrics import psnr

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


def blend_psnr(frames: Tensor, n: int) -> float:
    """PSNR of the inserted frames against a linear blend of the key frames around them, in dB; a video that only fades
    from key frame to key frame scores high, so more is not better. frames: uint8 f h w 3."""
    keys = frames[::n].float()
    inside = torch.arange((len(keys) - 1) * n)
    inside = inside[inside % n > 0]
    share = (inside % n / n).view(-1, 1, 1, 1)
    blend = torch.lerp(keys[inside // n], keys[inside // n + 1], share)
    return psnr(frames[inside], blend.round().byte())
