"""A checkpoint's config: its family, the sizes of its networks, and the settings its videos are made with."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, fields
from math import isfinite
from typing import Annotated, Any

from .models.autoencoder import AutoencoderConfig
from .models.unet import SkeletonConfig
from .samplers import DDIMConfig, EulerConfig


@dataclass(frozen=True)
class Sampling:
    """Settings that a checkpoint recommends and that may be changed for a video. Values here are VideoCrafter2's (the
    paper's Table 4); texts are what `--help` says. ValueError for a value that no checkpoint could take."""

    height: Annotated[int, "pixels"] = 320
    width: Annotated[int, "pixels"] = 512
    steps: Annotated[int, "denoising steps; best a divisor of 1000"] = 50
    eta: Annotated[float, "share of fresh noise a step, 0 to 1"] = 1.0
    guidance_scale: Annotated[float, "of classifier-free guidance, 1 is none; of the last frame, where it grows"] = 12.0
    first_guidance_scale: Annotated[float | None, "of the first frame, linear to the last one's"] = None
    guidance_rescale: Annotated[float, "share of guidance's rise in contrast that is taken back, 0 to 1"] = 0.0
    fps: Annotated[int, "key frames a second, as the model is told and as they play"] = 8
    negative_prompt: Annotated[str, "what guidance leads away from"] = ""
    motion_bucket_id: Annotated[int, "amount of motion, 0 to 255"] = 127
    noise_aug_strength: Annotated[float, "noise on the image, 0 to 1: more lets the video leave it"] = 0.02

    def __post_init__(self) -> None:
        if self.fps < 1:
            raise ValueError(f"fps={self.fps}; it must be at least 1")
        for name in ("guidance_scale", "first_guidance_scale"):
            if (scale := getattr(self, name)) is not None and not isfinite(scale):
                raise ValueError(f"{name}={scale} is no number")
        if not 0 <= self.guidance_rescale <= 1:
            raise ValueError(f"guidance_rescale={self.guidance_rescale} is not in [0, 1]")
        if not 0 <= self.motion_bucket_id <= 255:
            raise ValueError(f"motion_bucket_id={self.motion_bucket_id}; use 0 to 255")
        if not 0 <= self.noise_aug_strength <= 1:
            raise ValueError(f"noise_aug_strength={self.noise_aug_strength} is not in [0, 1]")


@dataclass(frozen=True)
class Defaults(Sampling):
    """A checkpoint's own settings, its own prompt, and the preset (`settings.PRESETS`) that it is best made with."""

    prompt: str = "A panda eats a pizza, wearing space suit, closeup, photorealistic"
    preset: str = "paper"


@dataclass(frozen=True)
class ModelConfig:
    """encoder: of what the video is made from; its class is the family's choice, as the network's is."""

    family: str
    unet: SkeletonConfig
    vae: AutoencoderConfig
    encoder: Any
    sampler: DDIMConfig | EulerConfig
    defaults: Defaults

    @property
    def side(self) -> int:
        """Pixels of which a video's height and width are multiples."""
        return self.vae.factor * 2 ** (len(self.unet.channel_mult) - 1)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    def like(self, text: str) -> ModelConfig:
        """The config of the same classes that `to_json` wrote. ValueError on anything else."""
        try:
            return _build(self, json.loads(text))
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a config of this version: {error}") from error


def _build(like: Any, values: dict[str, Any]) -> Any:
    """A dataclass from what `asdict` and JSON made of one; like: one of the same classes. What a file of an older
    version lacks has its class's default."""
    required = {field.name for field in fields(like) if field.default is dataclasses.MISSING}
    if wrong := (values.keys() - {field.name for field in fields(like)}) | (required - values.keys()):
        raise KeyError(f"{type(like).__name__}: {', '.join(sorted(wrong))}")
    built = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(getattr(like, name)):
            value = _build(getattr(like, name), value)
        elif isinstance(value, list):
            value = tuple(value)
        built[name] = value
    return type(like)(**built)
