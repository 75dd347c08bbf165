"""LaVie's interpolation network (Wang et al. 2023, arXiv 2309.15103): 16 key frames to 61 frames.

It is LaVie's UNet, with the key frames' latents beside the noisy ones. Its blocks differ: attention
within frames is sparse-causal; attention along the frames has no positions and comes after the
feed-forward.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zerosmooth.attention import ContextStates, SpatialSelfAttention, TemporalAttention
from zerosmooth.bus import Stage, name_modules
from zerosmooth.checkpoint import describe, load_described, sha256
from zerosmooth.config import Defaults
from zerosmooth.families.lavie import LaVie
from zerosmooth.family import Networks
from zerosmooth.fields import UserError
from zerosmooth.guidance import Branch, Inputs
from zerosmooth.models.lavie import LaVieConfig, LaVieTransformer, LaVieTransformerBlock, LaVieUNet
from zerosmooth.samplers import DDIM
from zerosmooth.settings import Settings

from .interpolator import Interpolator

KEYS, BETWEEN = 16, 4  # key frames, and the step from one to the next
FRAMES = BETWEEN * (KEYS - 1) + 1


class InterpolationUNet(LaVieUNet):
    """forward as LaVie's, without a stage. x: b f 2c h w, the noisy latents and the key frames'."""

    def __init__(self, config: LaVieConfig) -> None:
        super().__init__(config)
        for module in self.modules():
            if isinstance(module, LaVieTransformer):
                module.blocks[0] = InterpolationBlock(config, module.norm.num_channels)
        name_modules(self)


class InterpolationBlock(LaVieTransformerBlock):
    def __init__(self, c: LaVieConfig, dim: int) -> None:
        super().__init__(c, dim)
        self.self_attn = SparseCausalAttention(dim, c.heads, dim // c.heads)
        self.temporal_attn = TemporalAttention(dim, c.heads, dim // c.heads)

    def forward(self, h: Tensor, context: ContextStates, stage: Stage | None) -> Tensor:
        h = h + self.self_attn(self.norm1(h), stage)
        h = h + self.cross_attn(self.norm2(h), context, stage)
        h = h + self.ff(self.norm3(h))
        return h + self.temporal_attn(self.norm_temporal(h), stage)


class SparseCausalAttention(SpatialSelfAttention):
    """Attention of a frame's tokens to those of the first frame and of the previous one (Wu et al.
    2022, arXiv 2212.11565), not to its own. For the first frame both are itself."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        before = [0, *range(k.shape[1] - 1)]
        both = (torch.cat([x[:, :1].expand_as(x), x[:, before]], dim=2) for x in (k, v))
        return super().attend(q, *both)


class EvenDDIM(DDIM):
    """DDIM at eta 0 with timesteps spaced evenly from 999 to 0, both included; the last step leads
    to clean data. UserError if steps are not 2 to 1000."""

    def __init__(self, config: Any, steps: int) -> None:
        if steps < 2:
            raise UserError(f"steps={steps}; use 2 to 1000")
        super().__init__(config, steps, eta=0.0)
        a, at, timesteps = config.alphas_cumprod(), 0.0, []
        for _ in range(steps):
            timesteps.append(round(at))
            at += (len(a) - 1) / (steps - 1)  # summed as upstream, which decides how halves round
        self.timesteps = timesteps[::-1]
        a = a[self.timesteps]
        self.alpha, self.sigma = np.sqrt(a), np.sqrt(1 - a)
        self.alpha_prev = np.append(self.alpha[1:], 1.0)
        self.sigma_prev = np.append(self.sigma[1:], 0.0)


class LaVieInterpolation(LaVie):
    """Its checkpoints are converted and loaded like any family's, but make no video from a prompt
    alone.

    defaults: the paper's (upstream takes 50 steps); prompt: a pattern for a video's prompt.
    """

    name = "lavie-interpolation"
    takes = ("prompt", "image")
    config = replace(
        LaVie.config, family=name, unet=LaVieConfig(in_channels=8, frames=FRAMES),
        defaults=Defaults(steps=25, eta=0.0, guidance_scale=4.0, negative_prompt="None",
                          prompt="{}, 4k."))

    def unet(self, config: LaVieConfig) -> nn.Module:
        return InterpolationUNet(config)

    def branches(self, networks: Networks, inputs: Inputs, settings: Settings) -> list[Branch]:
        """With one image for all key frames, to check a checkpoint; `sample` takes them all."""
        keys = networks.vae.encode(inputs.pixels.to(networks.vae.dtype))
        plain = super().branches(networks, inputs, settings)
        return [replace(branch, latents=keys.to(branch.context.dtype)) for branch in plain]


FAMILY = LaVieInterpolation()


def key_latents(networks: Networks, frames: Tensor, noise: Tensor, size: tuple[int, int]) -> Tensor:
    """Latents of key frames: samples of the posterior, on which the network was trained.

    frames: uint8 k h w 3; noise: k c h/factor w/factor, standard normal; size: height and width to
    which frames of another size are resized, without antialiasing. Returns k c h/factor w/factor.
    """
    x = frames.to(noise.device).permute(0, 3, 1, 2).float() / 255
    if size != tuple(x.shape[-2:]):
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    mean, log_variance = networks.vae.moments(((x - 0.5) / 0.5).to(networks.vae.dtype))
    return networks.vae.config.scale * (mean.float() + (0.5 * log_variance.float()).exp() * noise)


def beside(keys: Tensor) -> Tensor:
    """The key frame that each frame is shown: the nearest, or the earlier of two. keys: b k ...;
    returns b f ... with f = 4k - 3."""
    f = BETWEEN * (keys.shape[1] - 1) + 1
    return keys[:, (torch.arange(f, device=keys.device) + 1) // BETWEEN]


@torch.no_grad()
def sample(networks: Networks, sampler: DDIM, keys: Tensor, noise: Tensor,
           contexts: tuple[Tensor, Tensor], scale: float) -> Tensor:
    """Latents of the dense video: b f c h w, float32.

    keys: b k c h w, latents; noise: b f c h w, f = 4k - 3; contexts: b m c each, of the prompt and
    of the negative one; scale: of guidance.
    """
    told = torch.cat(contexts) if scale != 1 else contexts[0]
    branches, states = len(told) // len(keys), networks.unet.project_context(told)
    shown, x = beside(keys), sampler.start(noise)
    for i in range(len(sampler)):
        both = torch.cat([x, shown], dim=2).to(told.dtype)
        timestep = torch.full((len(told),), sampler.timestep(i), device=x.device)
        output = networks.unet(torch.cat([both] * branches), timestep, states).float()
        if branches == 2:
            conditional, unconditional = output.chunk(2)
            output = unconditional + scale * (conditional - unconditional)
        x = sampler.step(i, x, sampler.x0(i, x, output), None)
    return x


def to_uint8(frames: Tensor) -> Tensor:
    """Decoded frames, f 3 h w in about [-1, 1], as uint8 f h w 3."""
    return (255 * (frames / 2 + 0.5) + 0.5).clamp(0, 255).byte().permute(0, 2, 3, 1)


class LaVieInterpolator(Interpolator):
    """A checkpoint of this family with its own settings, at its own size; frames are resized to the
    video's."""

    def __init__(self, path: Path, device: torch.device, dtype: torch.dtype) -> None:
        checkpoint = describe(path, FAMILY)
        self.networks = load_described(checkpoint, device, dtype).networks
        self.config, self.device = checkpoint.config, device
        own = json.dumps(asdict(self.config.defaults))
        self.protocol = f"{path.name} (sha256 {sha256(path)[:16]}), {own}"

    def check(self, settings: Settings) -> None:
        if settings.key_frames != KEYS or BETWEEN % settings.scale:
            raise UserError(f"{FAMILY.name} makes {BETWEEN} frames for each of {KEYS} key frames, "
                            f"not {settings.scale} for {settings.key_frames}")

    @torch.inference_mode()
    def __call__(self, keys: Tensor, n: int, prompt: str, seed: int) -> Tensor:
        own, vae, networks = self.config.defaults, self.config.vae, self.networks
        shape = (vae.latent_channels, own.height // vae.factor, own.width // vae.factor)
        first, second = (
            torch.randn(f, *shape, generator=torch.Generator().manual_seed(seed)).to(self.device)
            for f in (KEYS, FRAMES))
        latents = key_latents(networks, keys, first, (own.height, own.width))
        prompts = own.prompt.format(prompt), own.negative_prompt
        told, without = (networks.encoder.encode([text]) for text in prompts)
        sampler = EvenDDIM(self.config.sampler, own.steps)
        z = sample(networks, sampler, latents[None], second[None], (told, without),
                   own.guidance_scale)
        z = z[0, :: BETWEEN // n].to(networks.vae.dtype)
        frames = networks.vae.decode(z, vae.decode_chunk_size).float()
        if frames.shape[-2:] != keys.shape[1:3]:
            size = tuple(keys.shape[1:3])
            frames = F.interpolate(frames, size=size, mode="bilinear", align_corners=False)
        return to_uint8(frames).cpu()
