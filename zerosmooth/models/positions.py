"""Temporal attention with relative positions: VideoCrafter1's and LaVie's.

`attention.TemporalAttention` calls these modules (q, k, v) -> o window by window, so that distances
restart in every window (paper Eq. 21-22). q, k, v: ... f d.
"""

from __future__ import annotations

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import attend_frames
from .kernels import once


class RelativePosition(nn.Module):
    """Attention with learned relative keys and values (VideoCrafter1; paper Eq. 21, 22).

    Distances beyond max_distance count as max_distance. The f x f weights are small: f is a window.
    """

    def __init__(self, head_dim: int, max_distance: int) -> None:
        super().__init__()
        self.max_distance = max_distance
        self.keys = nn.Parameter(torch.randn(2 * max_distance + 1, head_dim) * 0.02)
        self.values = nn.Parameter(torch.randn(2 * max_distance + 1, head_dim) * 0.02)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        f, d = q.shape[-2:]
        distance = once(distances, f, self.max_distance, device=q.device, dtype=torch.int64)
        r_k, r_v = self.keys[distance], self.values[distance]  # 2f d
        logits = q @ k.transpose(-1, -2) + by_frame(q @ r_k.T)
        weights = (logits * d**-0.5).softmax(-1)
        return weights @ v + by_distance(weights) @ r_v


def distances(f: int, longest: int) -> Tensor:
    """Indices of the distances 1 - f to f among -longest to longest, which stand for all beyond."""
    return torch.arange(1 - f, f + 1).clamp(-longest, longest) + longest


def by_frame(x: Tensor) -> Tensor:
    """From each frame's values by distance to its values by frame: ... f 2f to ... f f.

    Frame i has the value for frame j at f - 1 + j - i, so rows that are one shorter line up.
    """
    f = x.shape[-2]
    return x.flatten(-2)[..., f - 1 : -1].unflatten(-1, (f, 2 * f - 1))[..., :f]


def by_distance(x: Tensor) -> Tensor:
    """The inverse: ... f f to ... f 2f, with zeros at distances where there is no frame."""
    f = x.shape[-2]
    return F.pad(F.pad(x, (0, f - 1)).flatten(-2), (f - 1, 1)).unflatten(-1, (f, 2 * f))


class RotaryBias(nn.Module):
    """Attention with rotary queries and keys (Su et al. 2021) and a learned bias by distance and
    head (LaVie; paper Eq. 21, 22).

    The first 32 channels of a head turn, in adjacent pairs. Distances fall into 32 buckets, 16 a
    direction: one for each up to 7, then ever wider ones up to max_distance (as in T5, Raffel et
    al. 2020).
    """

    def __init__(self, heads: int, head_dim: int, count: int = 32, max_distance: int = 32) -> None:
        super().__init__()
        self.turned, self.max_distance = min(32, head_dim), max_distance
        self.bias = nn.Parameter(torch.zeros(count, heads))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bucket = once(buckets, q.shape[-2], len(self.bias), self.max_distance,
                      device=q.device, dtype=torch.int64)
        bias = self.bias[bucket].permute(2, 0, 1).contiguous()  # h f f; fused kernels need this
        return attend_frames(self.turn(q), self.turn(k), v, bias)

    def turn(self, x: Tensor) -> Tensor:
        """Rotate channels 2i and 2i + 1 by frame * frequency_i. x: ... f d."""
        cos, sin = once(turns, x.shape[-2], self.turned, device=x.device, dtype=x.dtype)
        a, b = x[..., : self.turned : 2], x[..., 1 : self.turned : 2]
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
        return torch.cat([turned, x[..., self.turned :]], dim=-1)


def turns(f: int, channels: int) -> Tensor:
    """Cosines and sines of rotary embedding: two f channels/2."""
    pair = torch.arange(0, channels, 2)
    angle = torch.outer(torch.arange(f), 10_000.0 ** (-pair / channels))
    return torch.stack([angle.cos(), angle.sin()])


def buckets(f: int, count: int, max_distance: int) -> Tensor:
    """The bucket of each distance among f frames: query key."""
    frame = torch.arange(f)
    distance = frame[:, None] - frame[None, :]  # of the query from the key
    half = count // 2
    exact = half // 2
    far = distance.abs().clamp(min=1)
    wide = exact + ((far / exact).log() / log(max_distance / exact) * (half - exact)).long()
    bucket = torch.where(distance.abs() < exact, distance.abs(), wide.clamp(max=half - 1))
    return bucket + half * (distance < 0)
