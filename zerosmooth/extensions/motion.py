"""A lift that carries corrections along the motion between key frames, instead of in lines.

The motion is read from the predicted key frames themselves, by block matching, ahead and back. Each
pixel's motion is brought to the time of an inserted frame, and both key frames' corrections are
carried along it. Where that explains the change between the key frames no better than standing
still does, which is also where little moves, or where other displacements fit nearly as well, the
lift is that of lines.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .predictions import lines

REACH = 8  # largest displacement from key frame to key frame, in (latent) pixels
SHARP = 0.02  # temperature of the softmax over displacements, relative to the frames' variance
STEADY = 2e-3  # cost of a squared pixel of displacement, likewise: if ambiguous, nothing moves
SMALL = 0.2  # mean square change that counts as none, likewise
AT_ONCE = 2**24  # elements of a block-matching tensor, about


def carried(n: int, y: Tensor, keys: Tensor) -> Tensor:
    """The lift of y, b k c h w, along the motion of keys; constant after the last key frame."""
    out, k = lines(n, y), y.shape[1]
    if k == 1:
        return out
    a, b, left, right = (x.flatten(0, 1) for z in (keys, y) for x in (z[:, :-1], z[:, 1:]))
    ahead, back = match(a, b), match(b, a)
    for j in range(1, n):
        s, inserted = j / n, slice(j, (k - 1) * n, n)
        flow = motion_at(s, a, b, ahead, back)
        here, there = -s * flow, (1 - s) * flow  # from the inserted frame to either key frame
        still, moved = change(a, b), change(warp(a, here), warp(b, there))
        sure = (((still - moved) / (still + SMALL * variance(a)) - 0.2) / 0.4).clamp(0, 1)
        w, v = (1 - s) * inside(here) + 1e-3, s * inside(there) + 1e-3
        along = (w * warp(left, here) + v * warp(right, there)) / (w + v)
        mixed = torch.lerp(out[:, inserted].flatten(0, 1), along, sure)
        out[:, inserted] = mixed.unflatten(0, (-1, k - 1))
    return out


def match(a: Tensor, b: Tensor) -> Tensor:
    """Motion from a to b by soft block matching, b(place + motion) = a(place): n 2 h w, x and y.

    Less of it, or none, where displacements elsewhere fit nearly as well, as on repeated patterns:
    where these are over 1 to 2 squared pixels away, on average."""
    h, w = a.shape[-2:]
    reach = min(REACH, max(1, min(h, w) // 2 - 1))
    # displacements, x and y: m 2
    moves = torch.cartesian_prod(*[torch.arange(-reach, reach + 1.0, device=a.device)] * 2).flip(1)
    told = torch.cat([moves, moves.square().sum(1, keepdim=True)], 1)  # and their squared length
    ones = shifted(F.pad(a.new_ones(1, 1, h, w), (reach,) * 4), h, w)[:, 0]
    seen = F.avg_pool2d(ones, 5, 1, 2)  # share of a block that stays in the frame: 1 m h w

    def one(a: Tensor, b: Tensor) -> Tensor:
        there = shifted(F.pad(b, (reach,) * 4, mode="replicate"), h, w)
        cost = F.avg_pool2d((a[:, :, None] - there).square().mean(1) * ones, 5, 1, 2)
        cost = cost / (seen.clamp(min=1e-3) * variance(a)) + 1e3 * (seen < 0.25)
        cost = cost + STEADY * told[:, 2, None, None]
        # what fits best, and, less sharply, what fits nearly as well: how far away that is, squared
        flow, near = (torch.einsum("nmhw,md->ndhw", (-cost / sharp).softmax(1), told)
                      for sharp in (SHARP, 2 * SHARP))
        away = near[:, 2:] + (flow * (flow - 2 * near))[:, :2].sum(1, keepdim=True)
        return flow[:, :2] * (2 - away).clamp(0, 1)

    some = max(1, AT_ONCE // (a[0].numel() * len(moves)))
    return torch.cat([one(*pair) for pair in zip(a.split(some), b.split(some))])


def shifted(x: Tensor, h: int, w: int) -> Tensor:
    """All m crops of h x w from larger frames, row by row of their offsets: n c m h w."""
    return x.unfold(2, h, 1).unfold(3, w, 1).flatten(2, 3)  # of n c y x h w


def motion_at(s: float, a: Tensor, b: Tensor, ahead: Tensor, back: Tensor) -> Tensor:
    """Motion from a to b of what each pixel shows at time s, 0 to 1, between them: n 2 h w.

    Each pixel of a and b is splatted to where its motion takes it by then. Where several land,
    those whose motion explains most count most; where none do, a and b's motions here are averaged.
    """
    from_a, count_a = splat(ahead, gain(a, b, ahead), s)
    from_b, count_b = splat(back, gain(b, a, back), 1 - s)
    here, none = (1 - s) * ahead - s * back, 1e-4
    total = (1 - s) * from_a - s * from_b + none * here
    return total / ((1 - s) * count_a + s * count_b + none)


def gain(a: Tensor, b: Tensor, flow: Tensor) -> Tensor:
    """How much better than standing still a flow explains the change from a to b: n 1 h w."""
    return (change(a, b) - change(a, warp(b, flow))).clamp(min=0) / variance(a) + 1e-3


def splat(flow: Tensor, weight: Tensor, s: float) -> tuple[Tensor, Tensor]:
    """Forward splatting: sums of weight * flow, and of weight, at place + s * flow, bilinearly.

    flow: n 2 h w, weight: n 1 h w."""
    h, w = flow.shape[-2:]
    at = places(flow) + s * flow
    total = flow.new_zeros(len(flow), 3, h * w)
    for corner in at.new_tensor([[0, 0], [1, 0], [0, 1], [1, 1]])[:, :, None, None]:
        to = at.floor() + corner
        x, y = to.unbind(1)
        there = (x >= 0) & (x < w) & (y >= 0) & (y < h)
        share = weight * (1 - (at - to).abs()).prod(1, keepdim=True) * there[:, None]
        index = (y.clamp(0, h - 1) * w + x.clamp(0, w - 1)).long().flatten(1)
        parts = torch.cat([flow * share, share], dim=1).flatten(2)
        total.scatter_add_(2, index[:, None].expand(-1, 3, -1), parts)
    return total[:, :2].unflatten(2, (h, w)), total[:, 2:].unflatten(2, (h, w))


def change(a: Tensor, b: Tensor) -> Tensor:
    """Mean square difference around each pixel: n 1 h w."""
    return F.avg_pool2d((a - b).square().mean(1, keepdim=True), 3, 1, 1)


def variance(a: Tensor) -> Tensor:
    return a.var((1, 2, 3), keepdim=True) + 1e-6


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """x at each pixel's place + flow. n c h w, n 2 h w."""
    size = flow.new_tensor(flow.shape[:1:-1])  # w h
    at = (places(flow) + flow).permute(0, 2, 3, 1) * 2 / (size - 1) - 1
    return F.grid_sample(x, at, "bicubic", "border", align_corners=True)


def inside(flow: Tensor) -> Tensor:
    """Whether each pixel's place + flow is in the frame, 0 or 1: n 1 h w."""
    size = flow.new_tensor(flow.shape[:1:-1])[:, None, None]
    at = places(flow) + flow
    return ((at >= -0.5) & (at <= size - 0.5)).all(1, keepdim=True).float()


def places(flow: Tensor) -> Tensor:
    """Each pixel's own place, x and y: 2 h w."""
    y, x = (torch.arange(float(size), device=flow.device) for size in flow.shape[-2:])
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))
