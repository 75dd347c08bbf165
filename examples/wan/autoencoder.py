"""Wan 2.1's autoencoder: 1 + 4m frames to 1 + m latents and back, causal in time.

Latent 0 is frame 0; latent k is made of frames 4k - 3 .. 4k and of those before. A clip goes
through at once or in pieces, with the same result: each convolution keeps the last frames that it
saw, in a dictionary that lasts for the clip.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from zerosmooth.fields import UserError

Seen = dict[nn.Module, Tensor]  # by layer: the last frames of its input so far

MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715,
        0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652,
       1.5579, 1.6382, 1.1253, 2.8251, 1.916)


@dataclass(frozen=True)
class WanAutoencoderConfig:
    channels: int = 96  # of the first level
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)  # of each level, relative to the first
    res_blocks: int = 2  # ResNet blocks a level of the encoder; the decoder has one more
    latent_channels: int = 16
    time: tuple[bool, ...] = (False, True, True)  # whether each halving of space halves time too
    mean: tuple[float, ...] = MEAN  # of the latents' channels
    std: tuple[float, ...] = STD
    float32: bool = True  # it stays so

    def __post_init__(self) -> None:
        if len(self.time) != len(self.channel_mult) - 1:
            raise UserError(f"{len(self.time)} entries of time for {len(self.channel_mult)} "
                            "levels; each but the last one has one")
        if not len(self.mean) == len(self.std) == self.latent_channels:
            raise UserError(f"{len(self.mean)} means, {len(self.std)} deviations for "
                            f"{self.latent_channels} channels")
        if any(m * self.channels % 2 for m in self.channel_mult) or min(self.std) <= 0:
            raise UserError("channels of a level are odd, or a deviation is not positive")

    @property
    def factor(self) -> int:
        """Pixels of a latent's side."""
        return 2 ** len(self.time)

    @property
    def frames(self) -> int:
        """Frames of a latent, but of the first one."""
        return 2 ** sum(self.time)

    @property
    def decode_chunk_size(self) -> int:
        """Latents decoded at a time by default."""
        return 1


class Autoencoder(nn.Module):
    def __init__(self, config: WanAutoencoderConfig) -> None:
        super().__init__()
        self.config = c = config
        z = c.latent_channels
        self.encoder, self.decoder = Encoder(c), Decoder(c)
        self.quant_conv = nn.Conv3d(2 * z, 2 * z, 1)
        self.post_quant_conv = nn.Conv3d(z, z, 1)

    @property
    def dtype(self) -> torch.dtype:
        return self.quant_conv.weight.dtype

    def moments(self, x: Tensor, chunk: int | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior, of latents that are not normalised.

        x: b 1+nm 3 h w in [-1, 1], n = `config.frames`; chunk: latents at a time; None: all.
        Returns two of b 1+m c h/factor w/factor. ValueError for another number of frames.
        """
        n = self.config.frames
        if x.shape[1] % n != 1 % n:
            raise ValueError(f"{x.shape[1]} frames; 1 + {n}m are needed, {x.shape[1] // n * n + 1} "
                             "for one")
        size, seen = n * (chunk or x.shape[1]), Seen()
        first, *rest = F.pad(x.movedim(2, 1), (0, 0, 0, 0, n - 1, 0)).split(size, dim=2)
        parts = [self.encoder(part, seen) for part in (first[:, :, n - 1 :], *rest)]
        mean, log_variance = self.quant_conv(torch.cat(parts, dim=2)).chunk(2, dim=1)
        return mean.movedim(1, 2), log_variance.movedim(1, 2)

    def encode(self, x: Tensor, chunk: int | None = None) -> Tensor:
        """Latents for the diffusion model: the posterior's mode, normalised. x: .. f 3 h w; else as
        `moments`."""
        (mean, std), shape = self.statistics(x), x.shape
        z = (self.moments(x.reshape(-1, *shape[-4:]), chunk)[0] - mean) / std
        return z.reshape(*shape[:-4], *z.shape[1:])

    def decode(self, z: Tensor, chunk: int | None = None) -> Tensor:
        """Frames, in about [-1, 1], of latents from the diffusion model. z: .. f c h w; chunk:
        latents at a time; None: all."""
        mean, std = self.statistics(z)
        z, seen, shape = z * std + mean, Seen(), z.shape
        z = self.post_quant_conv(z.reshape(-1, *shape[-4:]).movedim(2, 1))
        parts = [self.decoder(part, seen) for part in z.split(chunk or z.shape[2], dim=2)]
        x = torch.cat(parts, dim=2).movedim(1, 2)
        return x.reshape(*shape[:-4], *x.shape[1:])

    def statistics(self, like: Tensor) -> Tensor:
        """Mean and deviation of the channels: 2 c 1 1."""
        return like.new_tensor([self.config.mean, self.config.std])[..., None, None]


class Encoder(nn.Module):
    """x: b 3 f h w, the next frames of a clip."""

    def __init__(self, c: WanAutoencoderConfig) -> None:
        super().__init__()
        self.conv_in = CausalConv(3, c.channels)
        self.levels, ch = nn.ModuleList(), c.channels
        for i, mult in enumerate(c.channel_mult):
            out = mult * c.channels
            down = Downsample(out, c.time[i]) if i < len(c.time) else None
            self.levels.append(Level(ch, out, c.res_blocks, down))
            ch = out
        self.middle = middle(ch)
        self.norm_out = Norm(ch)
        self.conv_out = CausalConv(ch, 2 * c.latent_channels)

    def forward(self, x: Tensor, seen: Seen) -> Tensor:
        h = self.conv_in(x, seen)
        for layer in (*self.levels, *self.middle):
            h = layer(h, seen)
        return self.conv_out(F.silu(self.norm_out(h)), seen)


class Decoder(nn.Module):
    """z: b c f h w, the next latents of a clip."""

    def __init__(self, c: WanAutoencoderConfig) -> None:
        super().__init__()
        ch = c.channel_mult[-1] * c.channels
        self.conv_in = CausalConv(c.latent_channels, ch)
        self.middle = middle(ch)
        self.levels = nn.ModuleList()  # the smallest first
        for i, mult in reversed(list(enumerate(c.channel_mult))):
            out = mult * c.channels
            up = Upsample(out, c.time[i - 1]) if i > 0 else None
            self.levels.append(Level(ch, out, c.res_blocks + 1, up))
            ch = out // 2
        self.norm_out = Norm(out)
        self.conv_out = CausalConv(out, 3)

    def forward(self, z: Tensor, seen: Seen) -> Tensor:
        h = self.conv_in(z, seen)
        for layer in (*self.middle, *self.levels):
            h = layer(h, seen)
        return self.conv_out(F.silu(self.norm_out(h)), seen)


class CausalConv(nn.Conv3d):
    """A convolution over a frame and those before, zeros before the first."""

    def __init__(self, channels: int, out: int, kernel: tuple[int, int, int] = (3, 3, 3)) -> None:
        super().__init__(channels, out, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2))

    def forward(self, x: Tensor, seen: Seen) -> Tensor:  # type: ignore[override]
        n = self.kernel_size[0] - 1
        before = seen[self] if self in seen else x.new_zeros(*x.shape[:2], n, *x.shape[3:])
        x = torch.cat([before, x], dim=2)
        seen[self] = x[:, :, -n:].clone()  # so that the rest can be freed
        return super().forward(x)


class Norm(nn.Module):
    """Of the channels of each pixel alone. x: b c .., dims: axes behind the channels."""

    def __init__(self, channels: int, dims: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * dims))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * x.shape[1] ** 0.5 * self.gamma


class ResBlock(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(channels), CausalConv(channels, out)
        self.norm2, self.conv2 = Norm(out), CausalConv(out, out)
        self.skip = nn.Conv3d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, seen: Seen) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)), seen)
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)), seen)


class PixelAttention(nn.Module):
    """Among the pixels of a frame, with one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, seen: Seen) -> Tensor:
        frames = rearrange(x, "b c f h w -> (b f) c h w")
        q, k, v = rearrange(self.to_qkv(self.norm(frames)), "n (s c) h w -> s n 1 (h w) c", s=3)
        o = F.scaled_dot_product_attention(q, k, v)
        o = rearrange(o, "n 1 (h w) c -> n c h w", h=x.shape[-2])
        return x + rearrange(self.proj(o), "(b f) c h w -> b c f h w", b=len(x))


def middle(channels: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(res1=ResBlock(channels, channels),
                                     attn=PixelAttention(channels),
                                     res2=ResBlock(channels, channels)))


class Level(nn.Module):
    """ResNet blocks of one resolution, and the way to the next one."""

    def __init__(self, channels: int, out: int, blocks: int, resample: nn.Module | None) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResBlock(channels if i == 0 else out, out) for i in range(blocks))
        self.resample = resample

    def forward(self, x: Tensor, seen: Seen) -> Tensor:
        for layer in self.res:
            x = layer(x, seen)
        return x if self.resample is None else self.resample(x, seen)


class Downsample(nn.Module):
    """Half the height and width, then half the frames: the first stays as it is."""

    def __init__(self, channels: int, time: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)
        self.time = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if time else None

    def forward(self, x: Tensor, seen: Seen) -> Tensor:
        x = frame_by_frame(lambda x: self.conv(F.pad(x, (0, 1, 0, 1))), x)
        if self.time is None:
            return x
        first = [] if self in seen else [x[:, :, :1]]
        x = torch.cat([seen[self], x], dim=2) if self in seen else x
        seen[self] = x[:, :, -1:].clone()
        return torch.cat([*first, self.time(x)] if x.shape[2] > 1 else first, dim=2)


class Upsample(nn.Module):
    """Twice the frames but the first, which the others do not see, then twice the height and width
    and half the channels."""

    def __init__(self, channels: int, time: bool) -> None:
        super().__init__()
        self.time = CausalConv(channels, 2 * channels, (3, 1, 1)) if time else None
        self.conv = nn.Conv2d(channels, channels // 2, 3, padding=1)

    def forward(self, x: Tensor, seen: Seen) -> Tensor:
        if self.time is not None:
            first, rest = x.tensor_split([int(self not in seen)], dim=2)
            seen[self] = first
            if rest.shape[2]:
                rest = rearrange(self.time(rest, seen), "b (n c) f h w -> b c (f n) h w", n=2)
            x = torch.cat([first, rest], dim=2)
        return frame_by_frame(
            lambda x: self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")), x)


def frame_by_frame(work, x: Tensor) -> Tensor:  # noqa: ANN001
    """work on all frames as images. x: b c f h w."""
    y = work(rearrange(x, "b c f h w -> (b f) c h w"))
    return rearrange(y, "(b f) c h w -> b c f h w", b=len(x))
