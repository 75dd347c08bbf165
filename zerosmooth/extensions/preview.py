"""What a video is going to be, seen early: latents as colours, without the time that a decoder
takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def coarse(latents: Tensor, decode: Callable[[Tensor], Tensor]) -> Tensor:
    """Frames of latents, a pixel for each latent one: uint8 f h w 3, on the CPU. latents: f c h w;
    decode: n c h w to n 3 H W in [-1, 1].

    Colours are an affine function of the latents' channels, fitted by least squares to the decoded
    middle frame, so it works for every autoencoder, and at every denoising step.
    """
    z = latents.float().nan_to_num()
    f, _, h, w = z.shape
    one = z[f // 2 : f // 2 + 1]
    pixels = decode(one.to(latents)).float().nan_to_num().clamp(-1, 1)
    colors = F.interpolate(pixels, (h, w), mode="area")
    known = torch.cat([one, torch.ones_like(one[:, :1])], dim=1)  # and a constant
    a, b = (x[0].flatten(1).cpu().double() for x in (known, colors))
    linear = b @ torch.linalg.pinv(a)  # 3 c+1
    every = torch.cat([z, torch.ones_like(z[:, :1])], dim=1).cpu().double()
    x = torch.einsum("rc,fchw->fhwr", linear, every)
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte()
