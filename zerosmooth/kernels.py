"""The linear layer and the 2d convolution of the networks: torch's, and on a CPU in the form that is fastest there.

Same numbers up to rounding; what it brings is in docs/speed.md. On a GPU they are torch's own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LIBRARIES = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()  # the second is oneDNN


class Linear(nn.Linear):
    """Tokens b f l d take the way of a 1x1 convolution: torch hands those to oneDNN, whose kernels take less time than
    the matrix product that it takes for a linear layer. The result is contiguous, as fused attention needs it."""

    def forward(self, h: Tensor) -> Tensor:
        if h.ndim != 4 or not on_cpu(h):
            return super().forward(h)
        return F.conv2d(h.contiguous().movedim(-1, 1), self.weight[:, :, None, None], self.bias).movedim(1, -1)


class Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        if not outweighs(self.weight, x):
            return super().forward(x)
        return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)


def outweighs(weight: Tensor, x: Tensor) -> bool:
    """Whether x is better laid out for a convolution than its larger kernel, which torch lays out channels-last in
    every call where x is."""
    return on_cpu(x) and weight.numel() > x.numel() and not x.is_contiguous()


def on_cpu(x: Tensor) -> bool:
    """Whether torch takes oneDNN for convolutions of x, and MKL for matrix products."""
    return LIBRARIES and x.device.type == "cpu" and x.dtype == torch.float32
