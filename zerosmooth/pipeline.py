"""From subjects to videos: encoders, guidance, what each stage is told, and the cascade around the
network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from operator import index
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from .bus import HiddenStateBus, Stage
from .cascade import keep, nested_noise
from .config import ModelConfig, check_text
from .extensions import LIFTS, METHODS
from .extensions.color import ColorCorrected
from .extensions.predictions import anchored, lines, sample_late
from .extensions.preview import coarse
from .extensions.reuse import reusing
from .family import Family, Networks
from .fields import SEED, Range, UserError, check, short
from .guidance import Branch, Guidance, Inputs
from .images import fit
from .models.compiled import compiled
from .models.layers import frame_chunks
from .offload import Memory
from .settings import AT_A_TIME, Running, Settings, known, settings_for
from .video import as_comment, picture, write_picture, write_video

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # in a notebook without widgets tqdm warns: its bar is text
    from tqdm.auto import tqdm

IMAGE_NOISE = -2  # the step that keys the noise on reference images; -1 is sampling's start


class NonFiniteError(ArithmeticError):
    """A denoising step made NaN or infinity; the text says which, and what to try."""


@dataclass(frozen=True)
class Subject:
    """What a video is made from. prompt: where the family takes one, None for the checkpoint's own;
    image: uint8 h w 3, where it takes one, of any size (see `images.fit`)."""

    prompt: str | None = None
    image: Tensor | None = None


AnySubject = str | Tensor | np.ndarray | Subject
WANTED = "give a prompt (str), an image (uint8 h w 3, see read_image), a Subject, or a list of them"


@dataclass(eq=False, repr=False)
class Video:
    """One video. frames, latents and fps have an entry a stage: key frames first, the smoothest
    last. A notebook shows it as a player of all stages in step."""

    prompt: str  # empty if it was made from an image alone
    seed: int
    frames: list[Tensor]  # uint8, f h w 3
    fps: list[float]
    latents: list[Tensor]  # float32 on the CPU, f c h w
    settings: Settings
    bus_peak_bytes: int  # the most hidden states that ever waited on the bus

    def save(self, path: str | Path, stage: int = -1) -> Path:
        """Write a stage to an .mp4, .gif or .webp, or to a .png a picture that compares all stages,
        with what they were made from as its comment, which a .webp has not. Returns the path.
        UserError for another name or no such stage; OSError if it cannot be written."""
        path, frames = Path(path), [x.numpy() for x in self.frames]
        made = {"prompt": self.prompt, "seed": self.seed, "settings": asdict(self.settings)}
        if path.suffix == ".png":
            write_picture(path, picture(frames, self.fps), as_comment(made))
        else:
            check("stage", stage, int, Range(-len(frames), len(frames) - 1))
            write_video(path, frames[stage], self.fps[stage], as_comment(made))
        return path

    def __repr__(self) -> str:
        counts, rates = (", ".join(f"{x:g}" for x in xs)
                         for xs in (map(len, self.frames), self.fps))
        height, width = self.frames[0].shape[1:3]
        return (f"Video({self.prompt!r}, seed={self.seed}: {counts} frames of {height}x{width} at "
                f"{rates} fps)")

    def _repr_html_(self) -> str:
        from zerosmooth_cli.page import player

        panels = [(f"{len(x)} frames", f"{fps:g} fps", x.numpy(), fps, None)
                  for x, fps in zip(self.frames, self.fps)]
        return player(self.prompt, f"seed {self.seed} · preset {self.settings.preset}", panels)


class Pipeline:
    """A checkpoint that is ready to sample: `zerosmooth.load` makes one."""

    def __init__(self, family: Family, config: ModelConfig, networks: Networks) -> None:
        self.family, self.config = family, config
        self.networks = networks.eval().requires_grad_(False)

    def __repr__(self) -> str:
        return (f"Pipeline({self.config.family}: from {' and '.join(self.family.takes)}, "
                f"{self.dtype} on {self.device})")

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
        """Frames of one video's latents. latents: f c h w; chunk: frames at a time. Returns uint8
        f h w 3. UserError for latents of another shape; NonFiniteError."""
        dtype, channels = self.networks.vae.dtype, self.config.vae.latent_channels
        check("chunk", chunk, int | None, AT_A_TIME)
        if not isinstance(latents, Tensor) or latents.ndim != 4 or latents.shape[1] != channels:
            raise UserError(f"latents of {_shape(latents)}; a tensor f {channels} h w is needed")
        x = self.networks.vae.decode(latents.to(self.device, dtype), chunk).float()
        if not torch.isfinite(x).all():
            hint = "more steps" if dtype == torch.float32 else "dtype bfloat16 or float32"
            raise NonFiniteError(f"decoding made NaN or infinity at {dtype}; try {hint}")
        x = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
        return x.permute(0, 2, 3, 1).contiguous()

    def sample(
        self,
        subjects: AnySubject | Sequence[AnySubject] | None = None,
        settings: Settings | None = None,
        *,
        seeds: SupportsIndex | Sequence[SupportsIndex] = 0,
        running: Running = Running(),
        noise: Callable[[int], Tensor] | None = None,
        image_noise: Tensor | None = None,
        progress: Callable[[int, int], None] | bool = False,
        preview: Callable[[Callable[[], list[Tensor]]], None] = lambda look: None,
        **asked: Any,
    ) -> list[Video]:
        """A video of each subject: a prompt, an image, or a `Subject` with both; None: the
        checkpoint's own prompt.

        seeds: one for all, or one each. settings: as `self.settings` returns them, or single ones
        by name: `sample("a red circle", steps=25, scale=2)`. running: what changes no result; its
        device is the pipeline's own. noise: instead of the seeds' own, see `sample_cascade`;
        image_noise: n 3 h w, likewise. progress: True for a bar; or called after each stage of each
        step, or after each run of the network where a method slides windows, with how many are
        done, and of how many. preview: called after each step with a function that returns coarse
        key frames as predicted by then, of each video uint8 k h w 3, a pixel for each latent one.
        UserError for what does not fit; NonFiniteError.
        """
        check("settings", settings, Settings | None)
        check("running", running, Running)
        if settings is not None and asked:
            raise UserError(f"{', '.join(asked)} beside settings; use settings(before=.., ..)")
        known(asked, Settings, beside=("seeds", "running", "noise", "progress", "preview"))
        settings = self.settings(**asked) if settings is None else settings
        settings.check(self.family, self.config)
        if settings.dtype != _name(self.dtype):
            raise UserError(f"settings ask for {settings.dtype}, this pipeline was loaded in "
                            f"{_name(self.dtype)}")
        bar = tqdm(disable=progress is not True, leave=False)

        def advance(done: int, of: int) -> None:
            bar.total = of
            bar.update(done - bar.n)

        if isinstance(progress, bool):
            progress = advance
        for name, given in {"progress": progress, "preview": preview, "noise": noise}.items():
            if not callable(given) and not (given is None and name == "noise"):
                raise UserError(f"{name}={short(given)}; a function is needed")
        shown = self._subjects(subjects)
        seeds = _seeds(seeds, len(shown))
        if image_noise is not None:
            if "image" not in self.family.takes:
                raise UserError("image_noise does nothing where no image is taken; leave it out")
            _check_shape("image_noise", image_noise,
                         (len(shown), 3, settings.height, settings.width))
        unet = self.networks.unet
        with (bar, torch.inference_mode(), frame_chunks(unet, running.frame_chunk),
              compiled(unet, running.compile)):
            videos = self._sample(shown, settings, seeds, running, noise, image_noise, progress,
                                  preview)
        for video in videos:  # made outside inference mode, so that they can be changed in place
            video.latents = [x.clone() for x in video.latents]
            video.frames = [x.clone() for x in video.frames]
        return videos

    def _subjects(self, subjects: AnySubject | Sequence[AnySubject] | None) -> list[Subject]:
        """One `Subject` a video. UserError if they are not what the family takes."""
        one = subjects is None or isinstance(subjects, (str, Tensor, np.ndarray, Subject))
        listed: Any = [Subject() if subjects is None else subjects] if one else subjects
        if not isinstance(listed, Sequence) or isinstance(listed, (bytes, bytearray)):
            raise UserError(f"{short(subjects)} is no subject; {WANTED}")
        shown = [_subject(one) for one in listed]
        if not shown:
            raise UserError("nothing to make a video from")
        takes, own = self.family.takes, self.config.defaults.prompt
        for s in shown:
            given = {"prompt": s.prompt, "image": s.image}
            got = [kind for kind, value in given.items() if value is not None]
            if "image" in {*got} ^ {*takes} or not {*got} <= {*takes}:
                hint = "; read_image(path) reads one" if "image" in {*takes} - {*got} else ""
                raise UserError(f"this checkpoint makes videos from {' and '.join(takes)}, not "
                                f"from {' and '.join(got) or 'nothing'}{hint}")
        return [replace(s, prompt=own) if s.prompt is None and "prompt" in takes else s
                for s in shown]

    def _told(self, settings: Settings, stage: int) -> Tensor | None:
        """What conditions the network in a stage, beside prompt and image."""
        fps = settings.fps_of(stage)
        if METHODS[settings.method].slides and "motion_bucket_id" not in self.family.idle:
            n, fps = settings.cascade.scale_of(stage), float(settings.fps)
            settings = replace(settings, motion_bucket_id=settings.motion_bucket_id // n)
        told = self.family.condition(self.config, fps, settings)
        return told if told is None else told.to(self.device)

    def _latent_shape(self, settings: Settings) -> tuple[int, int, int]:
        """c h w."""
        factor = self.config.vae.factor
        return self.config.unet.out_channels, settings.height // factor, settings.width // factor

    def _sample(
        self,
        subjects: Sequence[Subject],
        settings: Settings,
        seeds: Sequence[int],
        running: Running,
        noise: Callable[[int], Tensor] | None,
        image_noise: Tensor | None,
        progress: Callable[[int, int], None],
        preview: Callable[[Callable[[], list[Tensor]]], None],
    ) -> list[Video]:
        cascade, unet, vae = settings.cascade, self.networks.unet, self.networks.vae
        sampler = self.config.sampler.sampler(settings.steps, settings.eta)
        inputs = Inputs([subject.prompt or "" for subject in subjects])
        if "image" in self.family.takes:
            images = [fit(s.image, settings.height, settings.width, settings.resize)
                      for s in subjects if s.image is not None]
            pixels = (torch.stack(images).float() / 127.5 - 1).permute(0, 3, 1, 2)
            if image_noise is None:
                image_noise = torch.cat(
                    [nested_noise(pixels.shape[1:], 1, (), s, IMAGE_NOISE) for s in seeds])
            inputs = Inputs(inputs.prompts, pixels.to(self.device), image_noise.to(self.device))
        branches = self.family.branches(self.networks, inputs, settings)
        rates = [settings.fps_of(stage) for stage in range(cascade.stages)]
        told = [self._told(settings, stage) for stage in range(cascade.stages)]
        made, of = count(1), len(sampler) * cascade.stages
        if (slides := METHODS[settings.method].slides) is not None:
            of = slides(sampler, cascade)
        shape = self._latent_shape(settings)

        def noise_of(step: int) -> Tensor:
            if noise is None:
                x = torch.stack([nested_noise(shape, cascade.key_frames, cascade.scales, s, step)
                                 for s in seeds])
            else:
                x = noise(step)
                frames = cascade.frames_of(len(cascade.scales))
                _check_shape(f"noise({step})", x, (len(seeds), frames, *shape))
            return x.to(self.device)

        def guided(branches: list[Branch]) -> Callable[..., Tensor]:
            guide = Guidance(unet, branches, settings, running.sequential_guidance)

            def network(step: int, index: int, x: Tensor, stage: Stage | None) -> Tensor:
                output = guide(x, sampler.timestep(step), told[index], stage)
                if not torch.isfinite(output).all():
                    raise NonFiniteError(
                        f"step {step + 1} of {len(sampler)} made NaN or infinity in stage {index} "
                        f"at {self.dtype}; try dtype bfloat16 or float32, or a lower "
                        "guidance_scale")
                progress(step * cascade.stages + index + 1 if slides is None else next(made), of)
                return output

            return network

        network = guided(branches)

        def see(x: Tensor, at: Sequence[int]) -> list[Callable[..., Tensor]]:
            videos = torch.stack([self.decode(z, settings.decode_chunk_size) for z in x])
            shown = (videos[:, i].permute(0, 3, 1, 2).float() / 127.5 - 1 for i in at)
            every = (replace(inputs, pixels=pixels.to(self.device)) for pixels in shown)
            return [guided(self.family.branches(self.networks, one, settings)) for one in every]

        def look(data: list[Tensor]) -> None:
            preview(lambda: [coarse(z, lambda one: vae.decode(one.to(vae.dtype))) for z in data[0]])

        bus = settings.bus("cpu" if running.offload else None)
        memory = Memory(None) if bus is None else bus.memory
        try:
            with reusing(unet, settings.reuse, memory):
                xs = sample(network, sampler, settings, noise_of, bus, look,
                            see if "image" in self.family.takes else None)
        finally:
            memory.clear()
        return [
            Video(prompt, seed, [self.decode(z[i], settings.decode_chunk_size) for z in xs], rates,
                  [z[i].float().cpu() for z in xs], settings, memory.peak_bytes)
            for i, (prompt, seed) in enumerate(zip(inputs.prompts, seeds))
        ]


def sample(network: Callable[..., Tensor], sampler: Any, settings: Settings,
           noise: Callable[[int], Tensor], bus: HiddenStateBus | None,
           look: Callable[[list[Tensor]], None] = lambda data: None,
           see: Callable[..., Any] | None = None) -> list[Tensor]:
    """As `sample_cascade`, with all that settings ask for. look: is shown each step's data; see:
    as in `diffuseslide.sample_diffuseslide`."""
    cascade, method = settings.cascade, METHODS[settings.method].sample
    lift = LIFTS.get(settings.prediction)
    correct = keep if lift is None else anchored(cascade.scales, lift)

    def hook(step: int, x0s: list[Tensor]) -> list[Tensor]:
        x0s = correct(step, x0s)
        look(x0s)
        return x0s

    if settings.color_correction:
        sampler = ColorCorrected(sampler, cascade.key_frames)
    if METHODS[settings.method].slides is not None:
        method = partial(method, see=see)
    if (first := settings.first_step(len(sampler))) > 0:
        method = partial(sample_late, first=first, lift=lift or lines, sample=method)
    return method(network, sampler, cascade, noise, bus, hook)


def _subject(shown: Any) -> Subject:
    if isinstance(shown, (str, Tensor, np.ndarray)):
        shown = Subject(shown) if isinstance(shown, str) else Subject(image=torch.as_tensor(shown))
    if not isinstance(shown, Subject):
        raise UserError(f"{short(shown)} is no subject; {WANTED}")
    if shown.prompt is not None:
        check_text("a prompt", shown.prompt)
    return shown


def _seeds(seeds: Any, n: int) -> list[int]:
    """One for each of n videos. UserError if there are not as many, or they are no seeds."""
    try:
        listed = [index(s) for s in seeds] if hasattr(seeds, "__iter__") else [index(seeds)] * n
    except TypeError as error:
        raise UserError(f"seeds={short(seeds)}; whole numbers are needed") from error
    if len(listed) != n:
        raise UserError(f"{len(listed)} seeds for {n} videos; give one seed, or one for each")
    for seed in listed:
        check("seeds", seed, int, SEED)
    return listed


def _check_shape(name: str, x: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(x, Tensor) or x.shape != shape or not x.is_floating_point():
        raise UserError(f"{name} is {_shape(x)}; floating-point numbers of {shape} are needed")


def _shape(x: Any) -> str:
    return f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else short(x)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
