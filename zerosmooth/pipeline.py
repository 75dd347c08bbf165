"""From prompts or images to videos: encoders, guidance, conditions by stage, and the cascade around the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite

import torch
from torch import Tensor, nn

from . import cascade as method
from .bus import Stage
from .cascade import Cascade, nested_noise
from .config import ModelConfig
from .images import fit
from .models.autoencoder import Autoencoder
from .models.clip import ImageConfig, ImageTower, TextConfig, TextTower
from .models.lavie import LaVieUNet
from .models.layers import set_frame_chunk
from .models.svd import SVDUNet
from .models.tokenizer import Tokenizer
from .models.unet import Skeleton
from .models.videocrafter import UNet

UNETS = {"vc2": UNet, "vc1": UNet, "lavie": LaVieUNet, "svd": SVDUNet}
IMAGE_NOISE = -2  # the step that keys the noise on reference images; -1 is the noise that sampling starts from


class NonFiniteError(ArithmeticError):
    """A denoising step made NaN or infinity; the text says which, and what to try."""


class Networks(nn.Module):
    """The networks of a checkpoint; their parameters carry the names they have in its file."""

    encoder: TextTower | ImageTower

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.unet = UNETS[config.family](config.unet)
        self.vae = Autoencoder(config.vae)
        c = config.encoder
        self.encoder = ImageTower(c) if isinstance(c, ImageConfig) else TextTower(c)

        self.float32_vae = config.vae.float32

    def dtypes(self, dtype: torch.dtype) -> dict[str, torch.dtype]:
        """The precision of every tensor where the networks run in `dtype`."""
        vae = torch.float32 if self.float32_vae else dtype
        return {name: vae if name.startswith("vae.") else dtype for name in self.state_dict()}

    def cast(self, dtype: torch.dtype) -> Networks:
        """In place, to the precisions of `dtypes`."""
        self.to(dtype)
        self.vae.to(torch.float32 if self.float32_vae else dtype)
        return self


@dataclass
class Video:
    """One video. frames, latents and fps have an entry a stage: key frames first, the smoothest last."""

    prompt: str  # empty if it was made from an image
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
        text = config.encoder
        if isinstance(text, TextConfig):
            self.tokenizer = Tokenizer(text.merges, text.context_length, text.pad_token)

    @property
    def device(self) -> torch.device:
        return self.networks.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the network; a temporal autoencoder stays in float32."""
        return self.networks.unet.conv_in.weight.dtype

    @torch.inference_mode()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """The network's context of prompts: n m c."""
        ids = self.tokenizer(list(prompts)).to(self.device)
        return self.networks.encoder(ids)

    @torch.inference_mode()
    def encode_images(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The network's context of images, and their latents: n 1 c and n c h w, the latter not scaled.

        images: n 3 h w in [-1, 1], float32; noise: as images, added to what becomes latents."""
        images, encoder = images.to(self.device), self.networks.encoder
        assert isinstance(encoder, ImageTower)
        context = encoder(encoder.prepare(images).to(self.dtype))
        noisy = (images + noise.to(self.device)).to(self.networks.vae.dtype)
        return context, self.networks.vae.moments(noisy)[0].to(self.dtype)

    @torch.inference_mode()
    def decode(self, latents: Tensor, chunk: int | None = None) -> Tensor:
        """Frames of one video's latents. latents: f c h w; chunk: frames at a time. Returns uint8 f h w 3."""
        latents = latents.to(self.device, self.networks.vae.dtype)
        frames = self.networks.vae.decode(latents, chunk).float()
        if not torch.isfinite(frames).all():
            dtype = self.networks.vae.dtype
            hint = "more steps" if dtype == torch.float32 else "--dtype bfloat16 or float32"
            raise NonFiniteError(f"decoding made NaN or infinity at {dtype}; try {hint}")
        x = ((frames.clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
        return x.permute(0, 2, 3, 1).contiguous()

    @torch.inference_mode()
    def sample(
        self,
        prompts: str | Sequence[str] | None = None,
        *,
        images: Sequence[Tensor] | None = None,
        seeds: int | Sequence[int] = 0,
        cascade: Cascade | None = None,
        height: int | None = None,
        width: int | None = None,
        resize: str = "crop",
        steps: int | None = None,
        eta: float | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        fps: int | None = None,
        motion_bucket_id: int | None = None,
        noise_aug_strength: float | None = None,
        decode_chunk_size: int | None = None,
        sequential_guidance: bool = False,
        frame_chunk: int | None = None,
        noise: Callable[[int], Tensor] | None = None,
        image_noise: Tensor | None = None,
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> list[Video]:
        """Videos of prompts, or of images where the checkpoint is image to video; one seed each.

        What is None comes from the checkpoint's defaults; a cascade, two doublings of the frames it was trained on.
        images: uint8 h w 3 each, brought to height x width as `images.fit` does with `resize`. height, width: pixels.
        steps: denoising steps. guidance_scale: of the last frame, where it grows over the frames. fps: frames a second
        of the key frames, as a condition; every further stage multiplies it. motion_bucket_id, noise_aug_strength:
        conditions of image to video, see `config.Defaults`. decode_chunk_size: frames decoded at a time, see
        `Autoencoder.decode`; None: 16, of a temporal decoder 8. sequential_guidance: the branches of guidance run
        one after the other. frame_chunk: frames at a time in layers that see them one by one; both take less memory and
        change nothing beyond rounding. noise: instead of the seeds' own, see `sample_cascade`; image_noise: n 3 h w,
        likewise. progress: called after each stage of each step with how many are done, and of how many. Raises
        ValueError for settings that do not fit, and NonFiniteError.
        """
        d = self.config.defaults
        if self.config.takes_images:
            if images is None or prompts is not None or negative_prompt is not None:
                raise ValueError("this checkpoint makes videos from images: give images=[...], no prompts")
            images = list(images)
            prompts = [""] * len(images)
        elif images is not None or motion_bucket_id is not None or noise_aug_strength is not None:
            raise ValueError("this checkpoint makes videos from prompts, not from images, motion or noise on them")
        elif prompts is None or isinstance(prompts, str):
            prompts = [d.prompt if prompts is None else prompts]
        if not prompts:
            raise ValueError("nothing to make a video from")
        seeds = [seeds] * len(prompts) if isinstance(seeds, int) else list(seeds)
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} videos; give one seed, or one for each")
        cascade = Cascade(self.config.unet.frames) if cascade is None else cascade
        height, width = d.height if height is None else height, d.width if width is None else width
        steps, eta = d.steps if steps is None else steps, default_eta(self.config, cascade) if eta is None else eta
        fps = d.fps if fps is None else fps
        guidance_scale = d.guidance_scale if guidance_scale is None else guidance_scale
        motion = d.motion_bucket_id if motion_bucket_id is None else motion_bucket_id
        augmentation = d.noise_aug_strength if noise_aug_strength is None else noise_aug_strength
        check_settings(
            self.config,
            cascade,
            height=height,
            width=width,
            steps=steps,
            eta=eta,
            fps=fps,
            guidance_scale=guidance_scale,
            motion_bucket_id=motion,
            noise_aug_strength=augmentation,
            decode_chunk_size=decode_chunk_size,
            frame_chunk=frame_chunk,
        )
        decode_chunk_size = decode_chunk_size or default_chunk(self.config)
        sampler = self.config.sampler.sampler(steps, eta)
        if images is None:
            negative = d.negative_prompt if negative_prompt is None else negative_prompt
            branches = [Branch(self.encode_text(prompts)), Branch(self.encode_text([negative] * len(prompts)))]
        else:
            pixels = torch.stack([fit(image, height, width, resize) for image in images]).float() / 127.5 - 1
            pixels = pixels.permute(0, 3, 1, 2)
            if image_noise is None:
                image_noise = torch.cat([nested_noise(pixels.shape[1:], 1, (), s, IMAGE_NOISE) for s in seeds])
            context, z = self.encode_images(pixels, augmentation * image_noise)
            branches = [Branch(context, z), Branch(torch.zeros_like(context), torch.zeros_like(z))]
        guided = Guidance(
            self.networks.unet, branches, guidance_scale, d.first_guidance_scale, sequential=sequential_guidance
        )
        set_frame_chunk(self.networks.unet, frame_chunk)
        factor = self.config.vae.factor
        shape = (self.config.unet.out_channels, height // factor, width // factor)

        def seeded(step: int) -> Tensor:
            x = [nested_noise(shape, cascade.frames, cascade.scales, seed, step) for seed in seeds]
            return torch.stack(x).to(self.device)

        done = 0

        def run(i: int, stage: int, x: Tensor, view: Stage | None) -> Tensor:
            nonlocal done
            told = condition(self.config, fps * cascade.rate(stage), motion, augmentation)
            output = guided(x, sampler.timestep(i), told, view)
            if not torch.isfinite(output).all():
                raise NonFiniteError(
                    f"step {i + 1} of {len(sampler)} made NaN or infinity in stage {stage} at {self.dtype}; "
                    "try --dtype bfloat16 or --dtype float32, or a lower --guidance_scale"
                )
            done += 1
            progress(done, len(sampler) * cascade.stages)
            return output

        bus = cascade.bus()
        latents = method.sample_cascade(run, sampler, cascade, noise or seeded, bus)
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


def default_chunk(config: ModelConfig) -> int:
    """Frames decoded at a time, if nothing is said."""
    return 8 if config.vae.temporal else 16


def default_eta(config: ModelConfig, cascade: Cascade) -> float:
    """The checkpoint's own; 0 for FreeNoise, whose noise would be lost in fresh one."""
    return 0.0 if cascade.method == "freenoise" else config.defaults.eta


def check_settings(
    config: ModelConfig,
    cascade: Cascade,
    *,
    height: int,
    width: int,
    steps: int,
    eta: float,
    fps: int,
    guidance_scale: float,
    motion_bucket_id: int,
    noise_aug_strength: float,
    decode_chunk_size: int | None = None,
    frame_chunk: int | None = None,
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
    if not 0 <= motion_bucket_id <= 255:
        raise ValueError(f"motion_bucket_id={motion_bucket_id}; use 0 to 255")
    if not 0 <= noise_aug_strength <= 1:
        raise ValueError(f"noise_aug_strength={noise_aug_strength} is not in [0, 1]")
    for name, chunk in {"decode_chunk_size": decode_chunk_size, "frame_chunk": frame_chunk}.items():
        if chunk is not None and chunk < 1:
            raise ValueError(f"{name}={chunk}; it must be at least 1")
    if cascade.method == "freenoise" and eta != 0:
        raise ValueError(f"eta={eta} with freenoise, whose repeated noise fresh noise would cover; use 0")
    config.sampler.sampler(steps, eta)
    check_cascade(config, cascade)


def check_cascade(config: ModelConfig, cascade: Cascade) -> None:
    """ValueError if a checkpoint of this config cannot run in such a cascade, whatever it is asked for."""
    if cascade.correction.convolutions and not config.temporal_convolutions:
        raise ValueError("this network has no temporal convolutions that could be corrected; leave convolutions out")
    cascade.bus()


def told_fps(config: ModelConfig) -> bool:
    """Whether the network of a checkpoint that takes prompts is told the frames a second too."""
    return getattr(config.unet, "fps_condition", False)


def condition(config: ModelConfig, fps: float, motion: float, augmentation: float) -> Tensor | None:
    """The numbers that a family's network is told of a video of `fps` frames a second; None if it takes none."""
    if config.takes_images:
        return torch.tensor([fps - 1, motion, augmentation])
    return torch.tensor(fps) if told_fps(config) else None


@dataclass(frozen=True)
class Branch:
    """What the network is told in one branch of guidance.

    context: n m c, the encoder's output. latents: n c h w, set beside the noisy latents of every frame; or None.
    """

    context: Tensor
    latents: Tensor | None = None


class Guidance:
    """Classifier-free guidance (Ho & Salimans 2022): each branch is corrected by its own states on the bus.

    branches: the conditional one, then the unconditional one, which is not run at scale 1. scale: of all frames; with
    first_scale, of the last frame, linear from the first one's. sequential: the branches run one after the other, in
    half the memory; else in one batch.
    """

    def __init__(
        self,
        unet: Skeleton,
        branches: Sequence[Branch],
        scale: float,
        first_scale: float | None = None,
        sequential: bool = False,
    ) -> None:
        self.unet, self.dtype = unet, branches[0].context.dtype
        self.scale, self.first_scale = scale, first_scale
        self.single = scale == 1 and first_scale in (None, 1)
        self.runs = []  # of each run of the network: how many branches, their context and latents
        for group in [branches[:1]] if self.single else [[b] for b in branches] if sequential else [branches]:
            latents = [b.latents for b in group if b.latents is not None]
            states = unet.project_context(torch.cat([b.context for b in group]))
            self.runs.append((len(group), states, torch.cat(latents)[:, None] if latents else None))

    def __call__(self, x: Tensor, timestep: float, condition: Tensor | None, bus: Stage | None) -> Tensor:
        """The network's guided output. x: b f c h w, float32; condition: of every video, see `condition`."""
        outputs = []
        for i, (branches, states, latents) in enumerate(self.runs):
            shown = torch.cat([x] * branches).to(self.dtype)
            b, f = shown.shape[:2]
            if latents is not None:
                shown = torch.cat([shown, latents.expand(-1, f, -1, -1, -1)], dim=2)
            told = None if condition is None else condition.to(x.device).expand(b, *condition.shape)
            view = bus if bus is None or i == 0 else replace(bus, branch=i)
            outputs.append(self.unet(shown, torch.full((b,), timestep, device=x.device), states, told, view).float())
        output = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        if self.single:
            return output
        conditional, unconditional = output.chunk(2)
        return unconditional + self.scale_of(x.shape[1], x.device) * (conditional - unconditional)

    def scale_of(self, f: int, device: torch.device) -> float | Tensor:
        """The scale of each of f frames, or the one of all."""
        if self.first_scale is None:
            return self.scale
        return torch.linspace(self.first_scale, self.scale, f, device=device)[:, None, None, None]
