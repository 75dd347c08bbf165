"""From prompts to videos: encoders, guidance, conditions by stage, and the cascade around the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn

from . import cascade as method
from .bus import Stage
from .cascade import Cascade, nested_noise
from .config import ModelConfig
from .models.autoencoder import Autoencoder
from .models.text import TextTower
from .models.tokenizer import Tokenizer
from .models.videocrafter import UNet
from .samplers import DDIM


class NonFiniteError(ArithmeticError):
    """A denoising step made NaN or infinity; the text says which, and what to try."""


class Networks(nn.Module):
    """The networks of a checkpoint; their parameters carry the names they have in its file."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.unet = UNet(config.unet)
        self.vae = Autoencoder(config.vae)
        self.text = TextTower(config.text)


@dataclass
class Video:
    """One prompt's result. frames, latents and fps have an entry a stage: key frames first, the smoothest last."""

    prompt: str
    seed: int
    frames: list[Tensor]  # uint8, f h w 3
    fps: list[float]
    latents: list[Tensor]  # float32 on the CPU, f c h w
    bus_peak_bytes: int  # the most hidden states that ever waited on the bus


class Pipeline:
    """A checkpoint that is ready to sample: `zerosmooth.load` makes one."""

    def __init__(self, config: ModelConfig, networks: Networks) -> None:
        self.config = config
        self.networks = networks.eval().requires_grad_(False)
        text = config.text
        self.tokenizer = Tokenizer(text.merges, text.context_length, text.pad_token)

    @property
    def device(self) -> torch.device:
        return self.networks.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.networks.unet.conv_in.weight.dtype

    @torch.inference_mode()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """The network's context of prompts: n m c."""
        ids = self.tokenizer(list(prompts)).to(self.device)
        return self.networks.text(ids)

    @torch.inference_mode()
    def decode(self, latents: Tensor, chunk: int | None = None) -> Tensor:
        """Frames of one video's latents. latents: f c h w; chunk: frames at a time. Returns uint8 f h w 3."""
        frames = self.networks.vae.decode(latents.to(self.device, self.dtype), chunk).float()
        if not torch.isfinite(frames).all():
            raise NonFiniteError(f"decoding made NaN or infinity at {self.dtype}; try --dtype bfloat16 or float32")
        x = ((frames.clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
        return x.permute(0, 2, 3, 1).contiguous()

    @torch.inference_mode()
    def sample(
        self,
        prompts: str | Sequence[str] | None = None,
        *,
        seeds: int | Sequence[int] = 0,
        cascade: Cascade = Cascade(),
        height: int | None = None,
        width: int | None = None,
        steps: int | None = None,
        eta: float | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        fps: int | None = None,
        decode_chunk_size: int | None = 16,
        noise: Callable[[int], Tensor] | None = None,
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> list[Video]:
        """Videos of prompts, one seed each. What is None comes from the checkpoint's defaults.

        height, width: pixels. steps: denoising steps. fps: frames a second of the key frames, as a condition; every
        further stage multiplies it. noise: instead of the seeds' own; see `cascade.sample`. progress: called after
        each stage of each step with how many are done, and of how many. Raises ValueError for settings that do not
        fit, and NonFiniteError.
        """
        d = self.config.defaults
        if prompts is None or isinstance(prompts, str):
            prompts = [d.prompt if prompts is None else prompts]
        seeds = [seeds] * len(prompts) if isinstance(seeds, int) else list(seeds)
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one seed, or one for each prompt")
        height, width = d.height if height is None else height, d.width if width is None else width
        steps, eta = d.steps if steps is None else steps, d.eta if eta is None else eta
        fps = d.fps if fps is None else fps
        guidance_scale = d.guidance_scale if guidance_scale is None else guidance_scale
        check_settings(self.config, cascade, height, width, steps, eta, fps, guidance_scale)
        sampler = DDIM(self.config.sampler, steps, eta)
        guided = Guidance(
            self.networks.unet,
            self.encode_text(prompts),
            self.encode_text([d.negative_prompt if negative_prompt is None else negative_prompt] * len(prompts)),
            guidance_scale,
        )
        factor = self.config.vae.factor
        shape = (self.config.unet.in_channels, height // factor, width // factor)

        def seeded(step: int) -> Tensor:
            x = [nested_noise(shape, cascade.frames, cascade.scales, seed, step) for seed in seeds]
            return torch.stack(x).to(self.device)

        done = 0

        def run(i: int, stage: int, x: Tensor, view: Stage | None) -> Tensor:
            nonlocal done
            output = guided(x, sampler.timestep(i), fps * cascade.rate(stage), view)
            if not torch.isfinite(output).all():
                raise NonFiniteError(
                    f"step {i + 1} of {len(sampler)} made NaN or infinity in stage {stage} at {self.dtype}; "
                    "try --dtype bfloat16 or --dtype float32, or a lower --guidance_scale"
                )
            done += 1
            progress(done, len(sampler) * cascade.stages)
            return output

        bus = cascade.bus()
        latents = method.sample(run, sampler, cascade, noise or seeded, bus)
        return [
            Video(
                prompt=prompt,
                seed=seed,
                frames=[self.decode(z[i], decode_chunk_size) for z in latents],
                fps=[float(fps * cascade.rate(s)) for s in range(cascade.stages)],
                latents=[z[i].float().cpu() for z in latents],
                bus_peak_bytes=0 if bus is None else bus.peak_bytes,
            )
            for i, (prompt, seed) in enumerate(zip(prompts, seeds))
        ]


def check_settings(
    config: ModelConfig,
    cascade: Cascade,
    height: int,
    width: int,
    steps: int,
    eta: float,
    fps: int,
    guidance_scale: float,
    **others: object,
) -> None:
    """ValueError, with what would fit, if a checkpoint of this config cannot make such a video."""
    trained = config.unet.frames
    if not 2 <= cascade.frames <= trained:
        raise ValueError(f"{cascade.frames} key frames; this network was trained on {trained}: use 2 to {trained}")
    side = config.vae.factor * 2 ** (len(config.unet.channel_mult) - 1)
    for name, size in {"height": height, "width": width}.items():
        if size < side or size % side:
            near = max(side, round(size / side) * side)
            raise ValueError(f"{name} {size} is not a multiple of {side} pixels; {near} is")
    if fps < 1:
        raise ValueError(f"fps={fps}; it must be at least 1")
    if not isfinite(guidance_scale):
        raise ValueError(f"guidance_scale={guidance_scale} is no number")
    DDIM(config.sampler, steps, eta)
    cascade.bus()


class Guidance:
    """Classifier-free guidance (Ho & Salimans 2022): both branches in one batch, each with its own states on the bus.

    context, negative: n m c. At scale 1 the unconditional branch is not run.
    """

    def __init__(self, unet: UNet, context: Tensor, negative: Tensor, scale: float) -> None:
        self.unet, self.dtype, self.scale = unet, context.dtype, scale
        self.branches = 1 if scale == 1 else 2
        self.text = self.unet.project_text(context if self.branches == 1 else torch.cat([context, negative]))

    def __call__(self, x: Tensor, timestep: float, fps: float, bus: Stage | None) -> Tensor:
        """The network's guided output. x: b f c h w, float32."""
        b = self.branches * len(x)
        output = self.unet(
            torch.cat([x] * self.branches).to(self.dtype),
            torch.full((b,), timestep, device=x.device),
            self.text,
            fps=torch.full((b,), fps, device=x.device),
            bus=bus,
        ).float()
        if self.branches == 1:
            return output
        conditional, unconditional = output.chunk(2)
        return unconditional + self.scale * (conditional - unconditional)
