"""The linear layer and the 2d convolution of the networks: torch's, and on a CPU in the form that is fastest there.

Same numbers up to rounding; what it brings is in docs/speed.md. On a GPU they are torch's own.
Also what decides how tensors lie in memory, and how often small ones are made.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LIBRARIES = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()  # the second is oneDNN


def once(make: Callable[..., Tensor], *key: Hashable, device: torch.device, dtype: torch.dtype) -> Tensor:
    """make(*key), a small tensor, on a device in a precision: made on the CPU and copied at the first call alone, so
    that no step waits for it. It belongs to all callers: do not change it."""
    if torch.compiler.is_compiling():  # which traces what is within, and does not know contexts of devices
        return make(*key).to(device, dtype)
    return _once(make, device, dtype, *key)


@lru_cache(maxsize=256)
def _once(make: Callable[..., Tensor], device: torch.device, dtype: torch.dtype, *key: Hashable) -> Tensor:
    with torch.inference_mode(False), torch.device("cpu"):  # it may come to be used in training
        return make(*key).to(device, dtype)


forget = _once.cache_clear  # all that was made once


class Linear(nn.Linear):
    """Tokens b f l d take the way of a 1x1 convolution: torch hands those to oneDNN, whose kernels take less time than
    the matrix product that it takes for a linear layer. The result is contiguous, as fused attention needs it."""

    def forward(self, h: Tensor) -> Tensor:
        if h.ndim != 4 or not on_cpu(h):
            return super().forward(h)
        return F.conv2d(h.contiguous().movedim(-1, 1), self.weight[:, :, None, None], self.bias).movedim(1, -1)


class GroupNorm(nn.GroupNorm):
    """Of half precision on a GPU, channels-last stays so: torch's own would lay it out anew, here and for the next."""

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.movedim(1, -1)
        if not (x.is_cuda and x.dtype != torch.float32 and pixels.is_contiguous()) or torch.is_grad_enabled():
            return super().forward(x)
        return self.last(pixels).movedim(-1, 1)

    def last(self, x: Tensor) -> Tensor:
        """x: n .. c, contiguous, as is the result. Statistics in float32."""
        flat, count = x.flatten(1, -2), x[0].numel() // self.num_groups
        mean = self.by_group(flat.sum(1, dtype=torch.float32)) / count  # n c, as all that follows
        square = self.by_group(torch.linalg.vector_norm(flat, dim=1, dtype=torch.float32).square()) / count
        scale = self.weight * (square - mean.square() + self.eps).rsqrt()
        shift = self.bias - mean * scale
        out = torch.empty_like(flat)
        return torch.addcmul(shift[:, None], flat, scale[:, None], out=out).view_as(x)

    def by_group(self, x: Tensor) -> Tensor:
        """The sum of each group's channels, at each of them. x: n c."""
        groups = x.unflatten(1, (self.num_groups, -1)).sum(2, keepdim=True)
        return groups.expand(-1, -1, x.shape[1] // self.num_groups).flatten(1)


class Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        if not outweighs(self.weight, x):
            return super().forward(x)
        return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)


def laid_out(x: Tensor) -> Tensor:
    """Images in the layout in which a network takes them. x: n c h w."""
    return x.contiguous(memory_format=torch.channels_last)


def outweighs(weight: Tensor, x: Tensor) -> bool:
    """Whether x is better laid out for a convolution than its larger kernel, which torch lays out channels-last in
    every call where x is."""
    return on_cpu(x) and weight.numel() > x.numel() and not x.is_contiguous()


def on_cpu(x: Tensor) -> bool:
    """Whether torch takes oneDNN for convolutions of x, and MKL for matrix products."""
    return LIBRARIES and x.device.type == "cpu" and x.dtype == torch.float32
