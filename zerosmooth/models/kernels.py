"""The networks' linear layers, 2d convolutions and group norms: torch's, in faster forms.

Linear layers and convolutions take another way on CPUs, group norms on GPUs; the numbers are the
same up to rounding. What it saves is in docs/speed.md. Also how tensors are laid out in memory, and
the small ones that are made only once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# MKL, and oneDNN, which torch calls mkldnn
LIBRARIES = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()


def once(make: Callable[..., Tensor], *key: Hashable, device: torch.device,
         dtype: torch.dtype) -> Tensor:
    """make(*key), a small tensor, in a precision on a device.

    It is made on the CPU and copied at the first call only, so that no step waits for it. All
    callers share it: do not change it.
    """
    if torch.compiler.is_compiling():  # the compiler cannot trace contexts of devices
        return make(*key).to(device, dtype)
    return _once(make, device, dtype, *key)


@lru_cache(maxsize=256)
def _once(make: Callable[..., Tensor], device: torch.device, dtype: torch.dtype,
          *key: Hashable) -> Tensor:
    with torch.inference_mode(False), torch.device("cpu"):  # it may be used in training later
        return make(*key).to(device, dtype)


forget = _once.cache_clear  # drops all that was made


class Linear(nn.Linear):
    """On a CPU, tokens b f l d run as a 1x1 convolution: torch gives those to oneDNN, which takes
    less time than its matrix product. The result is contiguous, as fused attention needs it."""

    def forward(self, h: Tensor) -> Tensor:
        if h.ndim != 4 or not on_cpu(h):
            return super().forward(h)
        x = h.contiguous().movedim(-1, 1)
        return F.conv2d(x, self.weight[:, :, None, None], self.bias).movedim(1, -1)


class GroupNorm(nn.GroupNorm):
    """On a GPU, half precision that is channels-last stays so: torch would copy it into another
    layout, and the next layer would copy it back."""

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.movedim(1, -1)
        half = x.is_cuda and x.dtype != torch.float32
        if not half or not pixels.is_contiguous() or torch.is_grad_enabled():
            return super().forward(x)
        return self.last(pixels).movedim(-1, 1)

    def last(self, x: Tensor) -> Tensor:
        """The norm of x: n .. c, contiguous, as is the result. Statistics are float32."""
        flat, count = x.flatten(1, -2), x[0].numel() // self.num_groups
        mean = self.by_group(flat.sum(1, dtype=torch.float32)) / count  # n c, as all that follows
        pivot = mean.to(x.dtype)  # near enough that no digits are lost in squares
        norm = torch.linalg.vector_norm(flat - pivot[:, None], dim=1, dtype=torch.float32)
        variance = self.by_group(norm.square()) / count - (mean - pivot).square()
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        out = torch.empty_like(flat)
        return torch.addcmul(shift[:, None], flat, scale[:, None], out=out).view_as(x)

    def by_group(self, x: Tensor) -> Tensor:
        """The sum over each group's channels, at each of them. x: n c."""
        groups = x.unflatten(1, (self.num_groups, -1)).sum(2, keepdim=True)
        return groups.expand(-1, -1, x.shape[1] // self.num_groups).flatten(1)


class Conv2d(nn.Conv2d):
    """On a CPU, small images lie as torch has them by default: see `outweighs`."""

    def forward(self, x: Tensor) -> Tensor:
        if not outweighs(self.weight, x):
            return super().forward(x)
        return laid_out(super().forward(x.contiguous()))


def laid_out(x: Tensor) -> Tensor:
    """Images in a network's layout, channels-last. x: n c h w."""
    return x.contiguous(memory_format=torch.channels_last)


def outweighs(weight: Tensor, x: Tensor) -> bool:
    """Whether x is smaller than a convolution's kernel, which torch copies into the layout of x in
    every call: then it is cheaper to copy x."""
    return on_cpu(x) and weight.numel() > x.numel() and not x.is_contiguous()


def on_cpu(x: Tensor) -> bool:
    """Whether torch uses oneDNN for convolutions of x, and MKL for matrix products."""
    return LIBRARIES and x.device.type == "cpu" and x.dtype == torch.float32
