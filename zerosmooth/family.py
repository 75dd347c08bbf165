"""A family of checkpoints: one object that says all that the package needs to know of it.

The built-in ones are in `families/`; one of your own is a file that defines `FAMILY`, which you
name with `--family FILE` (see docs/new_backbone.md).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .config import ModelConfig, Sampling
from .fields import UserError
from .guidance import Branch, Inputs
from .models.autoencoder import Autoencoder
from .models.clip import TextTower

if TYPE_CHECKING:
    from weights_convert.conversion import Conversion

    from .settings import Settings


class Networks(nn.Module):
    """The networks of a checkpoint; their parameters carry the names they have in its file."""

    unet: Any  # the family's
    vae: Any
    encoder: Any

    def __init__(self, family: Family, config: ModelConfig) -> None:
        super().__init__()
        self.unet = family.unet(config.unet)
        self.vae = family.autoencoder(config.vae)
        self.encoder = family.encoder(config.encoder)

    def cast(self, dtype: torch.dtype) -> Networks:
        """Convert to a precision in place; a float32 autoencoder stays so."""
        self.to(dtype)
        self.vae.to(torch.float32 if self.vae.config.float32 else dtype)
        return self


class Family:
    """What is special about a family. The defaults here are those of prompts to video."""

    name: str  # in checkpoints and commands
    converter: str  # module whose `CONVERSION` turns published files into ours
    config: ModelConfig  # of the published checkpoint; smaller ones use the same classes
    takes: tuple[str, ...] = ("prompt",)  # what a video is made from: "prompt", "image", or both
    dense = True  # whether `Pipeline.sample` makes more than key frames
    idle: tuple[str, ...] = ("motion_bucket_id", "noise_aug_strength", "resize")  # unused Settings

    @property
    def conversion(self) -> Conversion:
        """The converter's, imported when it is needed; a family of one file sets its own."""
        return importlib.import_module(self.converter).CONVERSION

    def unet(self, config: Any) -> nn.Module:
        """The network of a `config.unet`, with forward(x, timestep, context, condition, stage) and
        project_context(context) as `models.unet.Skeleton` has them. The config needs in_channels,
        out_channels, frames and side, as a `SkeletonConfig` has them."""
        raise NotImplementedError

    def autoencoder(self, config: Any) -> nn.Module:
        """The autoencoder of a `config.vae`, with encode, decode and dtype as
        `models.autoencoder.Autoencoder` has them."""
        return Autoencoder(config)

    def encoder(self, config: Any) -> nn.Module:
        """The encoder, of prompts or images, of a `config.encoder`, whose `context_shape` is the
        number of tokens and channels of one video's context."""
        return TextTower(config)

    def encode_first(self, config: ModelConfig, prompts: Collection[str], settings: Settings,
                     device: torch.device) -> None:
        """Encode all prompts before the networks are loaded, where their encoder is too large to
        be one of them."""

    def frames(self, config: ModelConfig, latents: int) -> int:
        """How many frames so many latents are."""
        return latents

    def needs_first(self, config: ModelConfig, settings: Settings) -> str:
        """What that takes, for `--check`; empty if nothing."""
        return ""

    def branches(self, networks: Networks, inputs: Inputs, settings: Settings) -> list[Branch]:
        """The branches of guidance: the conditional one, then the unconditional one, which a
        guidance-distilled network does without."""
        texts = (inputs.prompts, [settings.negative_prompt] * len(inputs.prompts))
        return [Branch(networks.encoder.encode(prompts)) for prompts in texts]

    def lost_tokens(self, networks: Networks, prompt: str) -> int:
        """How many of a prompt's tokens do not fit into the encoder."""
        return networks.encoder.tokenizer.overflow(prompt)

    def told_rate(self, config: ModelConfig) -> bool:
        """Whether the network is conditioned on the frames a second of a stage."""
        return False

    def told_guidance(self, config: ModelConfig) -> bool:
        """Whether the network is guidance-distilled: conditioned on the guidance scale, so that it
        runs in the conditional branch alone."""
        return False

    def guided(self, config: ModelConfig, settings: Sampling) -> bool:
        """Whether the network runs in two branches of guidance."""
        return settings.guided and not self.told_guidance(config)

    def condition(self, config: ModelConfig, fps: float, settings: Sampling) -> Tensor | None:
        """The numbers that condition the network in a stage of `fps` frames a second, in any shape;
        None if it takes none."""
        return None


def load_family(name: str, built_in: dict[str, Family]) -> Family:
    """A built-in family, or the `FAMILY` of a file or module that the user names.

    UserError if there is none. The file's code runs: name only what you trust.
    """
    if name in built_in:
        return built_in[name]
    path = Path(name)
    try:
        if path.suffix == ".py":
            spec = importlib.util.spec_from_file_location(f"family_{path.stem}", path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # dataclasses look for it there
            spec.loader.exec_module(module)
        elif all(part.isidentifier() for part in name.split(".")):
            module = importlib.import_module(name)
        else:
            raise ModuleNotFoundError("it is neither a file ending in .py nor a module's name")
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise UserError(f"--family {name} cannot be loaded ({error}); name a file, a module or one "
                        f"of {', '.join(built_in)}") from error
    family = getattr(module, "FAMILY", None)
    if not isinstance(family, Family):
        raise UserError(f"--family {name} defines no FAMILY, an object of a subclass of Family")
    return family
