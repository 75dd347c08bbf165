"""LDMVFI (Danier et al. 2023, arXiv 2303.09508): the frame between two, by diffusion in the latents
of VQ-FIGAN."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weights_convert.engine import ConversionError, Table, convert
from weights_convert.ldm import RES, VAE_RES
from weights_convert.source import open_source
from weights_convert.videocrafter import BUFFERS
from zerosmooth.attention import ContextStates
from zerosmooth.bus import Stage
from zerosmooth.checkpoint import sha256
from zerosmooth.fields import UserError
from zerosmooth.models.layers import ResBlock
from zerosmooth.models.unet import Block, Skeleton, SkeletonConfig
from zerosmooth.samplers import DDIM, DDIMConfig
from zerosmooth.settings import Settings

from .interpolator import Interpolator
from .vqfigan import VQFIGAN, MaxViT, VQFIGANConfig

SAMPLER = DDIMConfig(beta_start=0.0015, beta_end=0.0195, more_steps=True)
STEPS, ETA = 50, 0.0  # as ZeroSmooth's authors ran it; LDMVFI's own take 200 and 1
Noise = Callable[[tuple[int, ...], int], Tensor]  # (shape, step) -> standard normal; -1: the start


@dataclass(frozen=True)
class UNetConfig(SkeletonConfig):
    in_channels: int = 9  # latents of the frame, of the one before, of the one after
    out_channels: int = 3
    channels: int = 256
    channel_mult: tuple[int, ...] = (1, 2, 4)
    head_dim: int = 32
    window: int = 2  # of attention, for frames of any size: that is how it was trained


class LDMVFIUNet(Skeleton):
    def __init__(self, c: UNetConfig) -> None:
        super().__init__(c, partial(MaxViTBlock, c))

    def noise(self, x: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """x: b 3 h w, noisy latents; timestep: b; condition: b 6 h w, latents of the frames before
        and after. h and w are multiples of 8. Returns b 3 h w."""
        return self(torch.cat([x, condition], dim=1)[:, None], timestep, {})[:, 0]


class MaxViTBlock(Block):
    def __init__(self, c: UNetConfig, channels: int, out: int, attention: bool,
                 **more: bool) -> None:
        res = partial(ResBlock, emb=4 * c.channels, groups=c.groups)
        super().__init__(res, channels, out, **more)
        self.attn = MaxViT(out, c.head_dim, c.window) if attention else nn.Identity()

    def attend(self, x: Tensor, b: int, context: ContextStates, stage: Stage | None) -> Tensor:
        return self.attn(x)


class LDMVFI(nn.Module):
    """Both networks; `TABLE` maps published names to those of their parameters."""

    def __init__(self, unet: UNetConfig, vae: VQFIGANConfig) -> None:
        super().__init__()
        self.unet, self.vae = LDMVFIUNet(unet), VQFIGAN(vae)

    @torch.no_grad()
    def sample(self, sampler: DDIM, prev: Tensor, next_: Tensor,
               noise: Noise) -> tuple[Tensor, Tensor]:
        """The frame between two, not clamped, and its latents before they are quantised.

        prev, next_: b 3 h w in [-1, 1], of a size that `padding` takes.
        """
        height, width = prev.shape[-2:]
        below, right = padding(height, width)
        prev, next_ = (F.pad(x, (0, right, 0, below), mode="reflect") for x in (prev, next_))
        (z_prev, phi_prev), (z_next, phi_next) = self.vae.encode(prev), self.vae.encode(next_)
        condition = torch.cat([z_prev, z_next], dim=1)
        x = sampler.start(noise(tuple(z_prev.shape), -1))
        for i in range(len(sampler)):
            timestep = torch.full((len(x),), sampler.timestep(i), device=x.device)
            output = self.unet.noise(x, timestep, condition)
            fresh = noise(tuple(x.shape), i) if sampler.stochastic else None
            x = sampler.step(i, x, sampler.x0(i, x, output), fresh)
        frame = self.vae.decode(x, prev, next_, [phi_prev, phi_next])
        return frame[..., :height, :width], x

    def between(self, frames: Tensor, sampler: DDIM, noise: Noise) -> Tensor:
        """A video of k frames with one more between each two: 2k - 1. uint8 f h w 3."""
        device = next(self.parameters()).device
        made = [frames[:1]]
        for pair in zip(frames[:-1], frames[1:]):
            prev, next_ = (x.to(device).permute(2, 0, 1)[None].float() / 127.5 - 1 for x in pair)
            middle, _ = self.sample(sampler, prev, next_, noise)
            made += [to_uint8(middle).cpu(), pair[1][None]]
        return torch.cat(made)


def to_uint8(x: Tensor) -> Tensor:
    """b 3 h w in [-1, 1] as uint8 b h w 3."""
    return ((x.clamp(-1, 1) + 1) / 2 * 255).round().byte().permute(0, 2, 3, 1)


def padding(height: int, width: int) -> tuple[int, int]:
    """Pixels to add below and at the right: up to multiples of 512, or of 256 for a height of up to
    256. A side that would double stays as it is. UserError for a size that the network does not
    take."""
    to = 256 if height <= 256 else 512
    below, right = (0 if -side % to == side else -side % to for side in (height, width))
    for side, more in ((height, below), (width, right)):
        if more >= side or (side + more) % 256:
            raise UserError(f"LDMVFI does not take frames of {height}x{width}; each side needs at "
                            "least 129 pixels, and the width 256 if the height is above 256")
    return below, right


ATTENTION = Table([
    ("norm.*", "norm.*"), *((f"fn.to_{x}.weight", f"to_{x}.weight") for x in "qkv"),
    ("fn.to_out.0.weight", "to_out.weight"), ("fn.rel_pos_bias.weight", "bias"),
])
FEED = Table([("norm.*", "norm.*"), ("fn.net.0.*", "fc1.*"), ("fn.net.3.*", "fc2.*")])
MAXVIT = Table([row for part in ("block", "grid")
                for table, name in ((ATTENTION, "attn"), (FEED, "ff"))
                for row in table.within(f"{name}_{part}.", f"{name}_{part}.")])
UNET = Table([
    ("time_embed.*", "time_embedding.*"), ("input_blocks.0.0.*", "conv_in.*"),
    ("input_blocks.{}.0.op.*", "encoder.{-1}.*"),
    *RES.within("input_blocks.{}.0.", "encoder.{-1}.res."),
    *MAXVIT.within("input_blocks.{}.1.", "encoder.{-1}.attn."),
    *RES.within("middle_block.0.", "middle.res."),
    *MAXVIT.within("middle_block.1.", "middle.attn."),
    *RES.within("middle_block.2.", "middle.res2."),
    *((f"output_blocks.{{}}.{i}.conv.*", "decoder.{}.upsample.conv.*") for i in (1, 2)),
    *RES.within("output_blocks.{}.0.", "decoder.{}.res."),
    *MAXVIT.within("output_blocks.{}.1.", "decoder.{}.attn."),
    ("out.0.*", "norm_out.*"), ("out.2.*", "conv_out.*"),
])
COUNTER = "num_batches_tracked"  # of batch norms
ENDS = Table([
    *((f"{name}.*", f"{name}.*") for name in ("conv_in", "norm_out", "conv_out")),
    *VAE_RES.within("mid.block_1.", "middle.res1."), *MAXVIT.within("mid.attn_1.", "middle.attn."),
    *VAE_RES.within("mid.block_2.", "middle.res2."),
])
GATE = "decoder.up.{}.cross_attn.proj_in.6.gate", "decoder.levels.{}.neighbours.6"
HEADS = {"KernelVertical": "vertical", "KernelHorizontal": "horizontal", "Alpha": "alpha",
         "Beta": "beta"}
VAE = Table([
    *ENDS.within("encoder.", "encoder."), *ENDS.within("decoder.", "decoder."),
    *VAE_RES.within("encoder.down.{}.block.{}.", "encoder.levels.{}.res.{}."),
    ("encoder.down.{}.downsample.conv.*", "encoder.levels.{}.resample.*"),
    *VAE_RES.within("decoder.up.{}.block.{}.", "decoder.levels.{}.res.{}."),
    *((f"{GATE[0]}.{i}.weight", f"{GATE[1]}.fc{j}.weight") for i, j in ((1, 1), (3, 2))),
    ("decoder.up.{}.cross_attn.proj_in.*", "decoder.levels.{}.neighbours.*"),
    *MAXVIT.within("decoder.up.{}.cross_attn.", "decoder.levels.{}.attn."),
    ("decoder.up.{}.upsample.conv.*", "decoder.levels.{}.resample.conv.*"),
    *((f"decoder.module{theirs}{i + 1}.*", f"decoder.synthesis.{ours}.{i}.*")
      for theirs, ours in HEADS.items() for i in (0, 1)),
    *((f"decoder.module{x}.*", f"decoder.synthesis.{x.lower()}.*") for x in ("Mask", "Residual")),
    *((f"{name}.*", f"{name}.*") for name in ("quant_conv", "post_quant_conv")),
    ("quantize.embedding.weight", "codebook"),
])
TABLE = Table(
    [*UNET.within("model.diffusion_model.", "unet."), *VAE.within("first_stage_model.", "vae.")],
    dropped={
        "cond_stage_model.*": "the autoencoder under a second name",
        "first_stage_model.decoder.up.{}.cross_attn.out_conv.*": "never called",
        f"*.{COUNTER}": "counted in training",
        **dict.fromkeys(BUFFERS, "the schedule's, computed"),
    },
)


def load(path: Path, device: str | torch.device = "cpu") -> LDMVFI:
    """LDMVFI from its authors' file, `ldmvfi-vqflow-f32-c256-concat_max.ckpt`. ConversionError if
    it is another file, or lacks the running average of the UNet's weights, which samples."""
    source = open_source(path, weights="ema")
    if source.chosen != "ema":
        raise ConversionError(f"{source.name} is not LDMVFI: the running average is missing")
    with torch.device("meta"):
        network = LDMVFI(UNetConfig(), VQFIGANConfig())
    state = {name: tuple(x.shape) for name, x in network.state_dict().items()}
    expected = {name: shape for name, shape in state.items() if COUNTER not in name}
    try:
        tensors = convert(TABLE, source.shapes, source.read, expected)
    except ConversionError as error:
        raise ConversionError(f"{source.name} is not LDMVFI: {error}") from None
    network.load_state_dict({name: x.to(device) for name, x in tensors}, assign=True)
    return network.eval().requires_grad_(False)


class LDMVFIInterpolator(Interpolator):
    """LDMVFI in float32: once for twice the frames, twice for four times, .."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.network, self.device = load(path, device), device
        self.protocol = f"{path.name} (sha256 {sha256(path)[:16]}), {STEPS} steps, eta {ETA}"

    def check(self, settings: Settings) -> None:
        padding(settings.height, settings.width)

    @torch.inference_mode()
    def __call__(self, keys: Tensor, n: int, prompt: str, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)

        def noise(shape: tuple[int, ...], step: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(self.device)

        sampler, frames = DDIM(SAMPLER, STEPS, ETA), keys
        while len(frames) < n * (len(keys) - 1) + 1:
            frames = self.network.between(frames, sampler, noise)
        return frames
