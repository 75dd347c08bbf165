"""From subjects to videos: encoders, guidance, what each stage is told, and the cascade around the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .bus import Stage
from .cascade import nested_noise, sample_cascade
from .config import ModelConfig
from .family import Family, Networks
from .guidance import Guidance
from .images import fit
from .models.layers import frame_chunks
from .settings import Running, Settings, settings_for

IMAGE_NOISE = -2  # the step that keys the noise on reference images; -1 is the noise that sampling starts from


class NonFiniteError(ArithmeticError):
    """A denoising step made NaN or infinity; the text says which, and what to try."""


@dataclass(frozen=True)
class Subject:
    """What a video is made from. prompt: where the family takes one, None for the checkpoint's own; image: uint8
    h w 3, where it takes one, of any size (see `images.fit`)."""

    prompt: str | None = None
    image: Tensor | None = None


@dataclass
class Video:
    """One video. frames, latents and fps have an entry a stage: key frames first, the smoothest last."""

    prompt: str  # empty if it was made from an image alone
    seed: int
    frames: list[Tensor]  # uint8, f h w 3
    fps: list[float]
    latents: list[Tensor]  # float32 on the CPU, f c h w
    settings: Settings
    bus_peak_bytes: int  # the most hidden states that ever waited on the bus


class Pipeline:
    """A checkpoint that is ready to sample: `zerosmooth.load` makes one."""

    def __init__(self, family: Family, config: ModelConfig, networks: Networks) -> None:
        self.family, self.config = family, config
        self.networks = networks.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(self.networks.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the network; a temporal autoencoder stays in float32."""
        return next(self.networks.unet.parameters()).dtype

    def settings(self, **asked: Any) -> Settings:
        """The checkpoint's own settings, changed by what is asked: see `settings.settings_for`."""
        return settings_for(self.family, self.config, **{"dtype": _name(self.dtype), **asked})

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

    def sample(
        self,
        subjects: str | Tensor | Subject | Sequence[str | Tensor | Subject] | None = None,
        settings: Settings | None = None,
        *,
        seeds: int | Sequence[int] = 0,
        running: Running = Running(),
        noise: Callable[[int], Tensor] | None = None,
        image_noise: Tensor | None = None,
        progress: Callable[[int, int], None] = lambda done, of: None,
        **asked: Any,
    ) -> list[Video]:
        """A video of each subject: a prompt, an image, or a `Subject` with both; None: the checkpoint's own prompt.

        seeds: one for all, or one each. settings: as `self.settings` gives them; or single ones by name, as in
        `sample("a red circle", steps=25, scales=(2,), strength=1.0)`. running: what changes no result (its device is
        the pipeline's own). noise: instead of the seeds' own, see `sample_cascade`; image_noise: n 3 h w, likewise.
        progress: called after each stage of each step with how many are done, and of how many. ValueError for what does
        not fit; NonFiniteError.
        """
        if settings is None:
            settings = self.settings(**asked)
        elif asked:
            raise ValueError(f"{', '.join(asked)} beside settings; change them there: pipeline.settings(..)")
        settings.check(self.config)
        if settings.dtype != _name(self.dtype):
            raise ValueError(f"settings ask for {settings.dtype}, this pipeline was loaded in {_name(self.dtype)}")
        shown = self._subjects(subjects)
        seeds = [int(seeds)] * len(shown) if not isinstance(seeds, Sequence) else list(seeds)
        if len(seeds) != len(shown):
            raise ValueError(f"{len(seeds)} seeds for {len(shown)} videos; give one seed, or one for each")
        with torch.inference_mode(), frame_chunks(self.networks.unet, running.frame_chunk):
            videos = self._sample(shown, settings, seeds, running, noise, image_noise, progress)
        for video in videos:  # made outside inference mode, so that they can be changed in place
            video.latents = [x.clone() for x in video.latents]
            video.frames = [x.clone() for x in video.frames]
        return videos

    def _subjects(self, subjects: str | Tensor | Subject | Sequence[str | Tensor | Subject] | None) -> list[Subject]:
        """One `Subject` a video. ValueError if they are not what the family takes."""
        if subjects is None or isinstance(subjects, (str, Tensor, Subject)):
            subjects = [Subject() if subjects is None else subjects]
        shown = [
            Subject(s) if isinstance(s, str) else Subject(image=s) if isinstance(s, Tensor) else s for s in subjects
        ]
        if not shown:
            raise ValueError("nothing to make a video from")
        takes, own = self.family.takes, self.config.defaults.prompt
        for subject in shown:
            given = [kind for kind in ("prompt", "image") if getattr(subject, kind) is not None]
            if ("image" in given) != ("image" in takes) or ("prompt" in given and "prompt" not in takes):
                wanted, got = " and ".join(takes), " and ".join(given) or "nothing"
                raise ValueError(f"this checkpoint makes videos from {wanted}, not from {got}")
        return [replace(s, prompt=own if s.prompt is None and "prompt" in takes else s.prompt) for s in shown]

    def _sample(
        self,
        subjects: Sequence[Subject],
        settings: Settings,
        seeds: Sequence[int],
        running: Running,
        noise: Callable[[int], Tensor] | None,
        image_noise: Tensor | None,
        progress: Callable[[int, int], None],
    ) -> list[Video]:
        cascade, unet, vae = settings.cascade, self.config.unet, self.config.vae
        sampler = self.config.sampler.sampler(settings.steps, settings.eta)
        pixels = None
        if "image" in self.family.takes:
            images = [
                fit(s.image, settings.height, settings.width, settings.resize) for s in subjects if s.image is not None
            ]
            pixels = (torch.stack(images).float() / 127.5 - 1).permute(0, 3, 1, 2)
            if image_noise is None:
                image_noise = torch.cat([nested_noise(pixels.shape[1:], 1, (), s, IMAGE_NOISE) for s in seeds])
            pixels, image_noise = pixels.to(self.device), image_noise.to(self.device)
        prompts = [subject.prompt or "" for subject in subjects]
        branches = self.family.branches(self.networks, prompts, pixels, image_noise, settings)
        scales = settings.guidance_scale, settings.first_guidance_scale, settings.guidance_rescale
        guided = Guidance(self.networks.unet, branches, *scales, sequential=running.sequential_guidance)
        rates = [settings.fps_of(stage) for stage in range(cascade.stages)]
        told = [self.family.condition(self.config, fps, settings) for fps in rates]
        told = [x if x is None else x.to(self.device) for x in told]
        shape = (unet.out_channels, settings.height // vae.factor, settings.width // vae.factor)

        def seeded(step: int) -> Tensor:
            x = [nested_noise(shape, cascade.frames, cascade.scales, seed, step) for seed in seeds]
            return torch.stack(x).to(self.device)

        def network(step: int, index: int, x: Tensor, stage: Stage | None) -> Tensor:
            output = guided(x, sampler.timestep(step), told[index], stage)
            if not torch.isfinite(output).all():
                raise NonFiniteError(
                    f"step {step + 1} of {len(sampler)} made NaN or infinity in stage {index} at {self.dtype}; "
                    "try --dtype bfloat16 or --dtype float32, or a lower --guidance_scale"
                )
            progress(step * cascade.stages + index + 1, len(sampler) * cascade.stages)
            return output

        bus = cascade.bus("cpu" if running.offload else None)
        latents = sample_cascade(network, sampler, cascade, noise or seeded, bus)
        return [
            Video(
                prompt=prompt,
                seed=seed,
                frames=[self.decode(z[i], settings.decode_chunk_size) for z in latents],
                fps=rates,
                latents=[z[i].float().cpu() for z in latents],
                settings=settings,
                bus_peak_bytes=0 if bus is None else bus.peak_bytes,
            )
            for i, (prompt, seed) in enumerate(zip(prompts, seeds))
        ]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
