"""A checkpoint's config: its family, the sizes of its networks, and the settings its videos are made with."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, fields
from typing import Any

from .models.autoencoder import AutoencoderConfig
from .models.clip import ImageConfig, TextConfig
from .models.lavie import LaVieConfig
from .models.svd import SVDConfig
from .models.videocrafter import VC1, VC2, UNetConfig
from .samplers import DDIMConfig, EulerConfig


@dataclass(frozen=True)
class Defaults:
    """What `sample.py` uses where it is not told otherwise; the paper's Table 4 for the published checkpoints,
    but for Stable Video Diffusion's guidance, which the paper's text has as linear and the table as 7.5."""

    height: int = 320  # pixels
    width: int = 512
    steps: int = 50
    eta: float = 1.0  # share of fresh noise a step
    guidance_scale: float = 12.0  # of the last frame
    first_guidance_scale: float | None = None  # of the first frame, linear in between; None: all frames the same
    fps: int = 8  # of the key frames: as condition and as playing speed
    prompt: str = "A panda eats a pizza, wearing space suit, closeup, photorealistic"
    negative_prompt: str = ""  # the unconditional branch of guidance
    motion_bucket_id: int = 127  # amount of motion, where the network has such a condition
    noise_aug_strength: float = 0.02  # noise on the reference image, where there is one


@dataclass(frozen=True)
class ModelConfig:
    family: str
    unet: UNetConfig | LaVieConfig | SVDConfig
    vae: AutoencoderConfig
    encoder: TextConfig | ImageConfig  # of what the video is made from: a prompt or an image
    sampler: DDIMConfig | EulerConfig
    defaults: Defaults

    @property
    def takes_images(self) -> bool:
        return isinstance(self.encoder, ImageConfig)

    @property
    def temporal_convolutions(self) -> bool:
        """Whether the network convolves along the frames, beside attending along them."""
        return getattr(self.unet, "temporal_conv", False)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> ModelConfig:
        """ValueError on anything that is not a config of this version."""
        try:
            values = json.loads(text)
            return _build(FAMILIES[values["family"]], values)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a config of this version: {error}") from error


LAVIE_DEFAULTS = Defaults(guidance_scale=7.5, prompt="a Corgi walking in the park at sunrise, oil painting style")
SVD_DEFAULTS = Defaults(
    height=576,
    width=1024,
    steps=25,
    eta=0.0,
    guidance_scale=3.0,
    first_guidance_scale=1.0,
    fps=7,
    prompt="",
    motion_bucket_id=180,
)
FAMILIES = {  # the published checkpoints; a small one has the same classes in another size
    "vc2": ModelConfig(
        "vc2", VC2, AutoencoderConfig(), TextConfig(), DDIMConfig(data_scale=0.7, more_steps=True), Defaults()
    ),
    "vc1": ModelConfig("vc1", VC1, AutoencoderConfig(), TextConfig(), DDIMConfig(more_steps=True), Defaults()),
    "lavie": ModelConfig(
        "lavie",
        LaVieConfig(),
        AutoencoderConfig(),
        TextConfig(width=768, heads=12, layers=12, pad_token=49407, activation="quick_gelu"),
        DDIMConfig(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
        LAVIE_DEFAULTS,
    ),
    "svd": ModelConfig(
        "svd",
        SVDConfig(),
        AutoencoderConfig(temporal=True, float32=True),
        ImageConfig(),
        EulerConfig(),
        SVD_DEFAULTS,
    ),
}


def _build(like: Any, values: dict[str, Any]) -> Any:
    """A dataclass from what `asdict` and JSON made of one; like: one of the same classes."""
    names = {field.name for field in fields(like)}
    if missing := names ^ values.keys():
        raise KeyError(f"{type(like).__name__}: {', '.join(sorted(missing))}")
    built = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(getattr(like, name)):
            value = _build(getattr(like, name), value)
        elif isinstance(value, list):
            value = tuple(value)
        built[name] = value
    return type(like)(**built)
