"""A family of checkpoints is one object: all that the package needs to know of it.

`sample.py`, `weights_convert`, `evaluation` and `--check` ask it and nothing else. The built-in ones are in
`families/`; one of your own is a file that defines `FAMILY`, named with `--family FILE` (see docs/new_backbone.md).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .config import ModelConfig, Sampling
from .guidance import Branch, Inputs
from .models.autoencoder import Autoencoder
from .models.clip import TextTower

if TYPE_CHECKING:
    from weights_convert.conversion import Conversion

    from .settings import Settings


class Networks(nn.Module):
    """The networks of a checkpoint; their parameters carry the names they have in its file."""

    unet: Any  # the family's
    encoder: Any

    def __init__(self, family: Family, config: ModelConfig) -> None:
        super().__init__()
        self.unet = family.unet(config.unet)
        self.vae = Autoencoder(config.vae)
        self.encoder = family.encoder(config.encoder)

    def dtypes(self, dtype: torch.dtype) -> dict[str, torch.dtype]:
        """The precision of every tensor where the networks run in `dtype`: a float32 autoencoder stays so."""
        vae = torch.float32 if self.vae.config.float32 else dtype
        return {name: vae if name.startswith("vae.") else dtype for name in self.state_dict()}

    def cast(self, dtype: torch.dtype) -> Networks:
        """In place, to the precisions of `dtypes`."""
        self.to(dtype)
        self.vae.to(torch.float32 if self.vae.config.float32 else dtype)
        return self


class Family:
    """What a family that makes videos from prompts needs to say; one that takes images overrides more.

    name: as checkpoints and commands call it. config: of the published checkpoint; a small one has the same classes in
    another size. takes: what a video is made from: "prompt", "image", or both. idle: names of `Settings` that do
    nothing here, and are refused. converter: the module whose `CONVERSION` says how published files become ours.
    """

    name: str
    converter: str
    config: ModelConfig
    takes: tuple[str, ...] = ("prompt",)
    idle: tuple[str, ...] = ("motion_bucket_id", "noise_aug_strength", "resize")

    @property
    def conversion(self) -> Conversion:
        """Of `converter`, loaded when something is converted; a family of one file sets its own here."""
        return importlib.import_module(self.converter).CONVERSION

    def unet(self, config: Any) -> nn.Module:
        """The network of a `config.unet`, as `models.unet.Skeleton` is: forward(x, timestep, context, condition, stage)
        and project_context(context)."""
        raise NotImplementedError

    def encoder(self, config: Any) -> nn.Module:
        """What encodes prompts or images, of a `config.encoder`, which has `context_shape`: tokens and channels of what
        the network is given of one video."""
        return TextTower(config)

    def branches(self, networks: Networks, inputs: Inputs, settings: Settings) -> list[Branch]:
        """What the network is told in each branch of guidance: the conditional one, then the unconditional one, which
        a network that is told the guidance scale does without."""
        told = (inputs.prompts, [settings.negative_prompt] * len(inputs.prompts))
        return [Branch(networks.encoder.encode(texts)) for texts in told]

    def lost_tokens(self, networks: Networks, prompt: str) -> int:
        """How many of a prompt's tokens do not fit into the encoder."""
        return networks.encoder.tokenizer.overflow(prompt)

    def told_rate(self, config: ModelConfig) -> bool:
        """Whether the network is told the frames a second of a stage."""
        return False

    def told_guidance(self, config: ModelConfig) -> bool:
        """Whether the network is told the guidance scale, and so runs in the conditional branch alone."""
        return False

    def guided(self, config: ModelConfig, settings: Sampling) -> bool:
        """Whether the network runs in two branches of guidance."""
        return settings.guided and not self.told_guidance(config)

    def condition(self, config: ModelConfig, fps: float, settings: Sampling) -> Tensor | None:
        """The numbers that the network is told of a stage of `fps` frames a second, of any shape; None if it takes
        none."""
        return None


def load_family(name: str, built_in: dict[str, Family]) -> Family:
    """A family that is built in, or the `FAMILY` of a file or an importable module that the user names.

    ValueError if there is none. The file's code runs: name only what you trust.
    """
    if name in built_in:
        return built_in[name]
    path = Path(name)
    if path.suffix == ".py" or path.exists():
        if not path.is_file():
            raise ValueError(f"--family {name}: there is no such file")
        spec = importlib.util.spec_from_file_location(f"family_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look for it there
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            known = ", ".join(built_in)
            raise ValueError(f"--family {name} is neither a file, a module, nor one of {known} ({error})") from error
    family = getattr(module, "FAMILY", None)
    if not isinstance(family, Family):
        raise ValueError(f"--family {name} defines no FAMILY, an object of a class derived from zerosmooth.Family")
    return family
