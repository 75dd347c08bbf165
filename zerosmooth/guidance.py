"""Classifier-free guidance around a network: what it is told in each branch, and how their outputs are put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .bus import Stage
from .config import Sampling
from .models.unet import Skeleton


@dataclass(frozen=True)
class Branch:
    """What the network is told in one branch of guidance.

    context: n m c, the encoder's output. latents: n c h w, set beside the noisy latents of every frame; or None.
    """

    context: Tensor
    latents: Tensor | None = None


@dataclass(frozen=True)
class Inputs:
    """What n videos are made from. prompts: n, empty where none is taken; pixels: n 3 h w in [-1, 1], float32, and
    noise: likewise, standard normal, where an image is taken, else empty."""

    prompts: list[str]
    pixels: Tensor = torch.empty(0)
    noise: Tensor = torch.empty(0)


class Guidance:
    """Classifier-free guidance (Ho & Salimans 2022): each branch is corrected by its own states on the bus.

    branches: the conditional one, then the unconditional one, which is not run where it has no part in the result; or
    the first alone, of a network that is told the scale. sampling: its scale is that of all frames, or with a first one
    linear over them; rescaling brings a share of the guided output to the deviation of the conditional one over each
    video, against overexposure (Lin et al. 2024, arXiv 2305.08891, Eq. 15-16). sequential: the branches run one after
    the other, in half the memory; else in one batch.
    """

    def __init__(
        self, unet: Skeleton, branches: Sequence[Branch], sampling: Sampling, sequential: bool = False
    ) -> None:
        self.unet, self.dtype, self.sampling = unet, branches[0].context.dtype, sampling
        self.guided = sampling.guided and len(branches) > 1
        self.runs = []  # of each run of the network: how many branches, their context and latents
        for group in [branches[:1]] if not self.guided else [[b] for b in branches] if sequential else [branches]:
            latents = [b.latents for b in group if b.latents is not None]
            states = unet.project_context(torch.cat([b.context for b in group]))
            self.runs.append((len(group), states, torch.cat(latents)[:, None] if latents else None))

    def __call__(self, x: Tensor, timestep: float, condition: Tensor | None, stage: Stage | None) -> Tensor:
        """The network's guided output. x: b f c h w, float32; condition: what every video's network is told of its
        stage, see `Family.condition`."""
        outputs = []
        for i, (branches, states, latents) in enumerate(self.runs):
            shown = torch.cat([x] * branches).to(self.dtype)
            b, f = shown.shape[:2]
            if latents is not None:
                shown = torch.cat([shown, latents.expand(-1, f, -1, -1, -1)], dim=2)
            told = None if condition is None else condition.to(x.device).expand(b, *condition.shape)
            own = stage if stage is None or i == 0 else replace(stage, branch=i)
            outputs.append(self.unet(shown, torch.full((b,), timestep, device=x.device), states, told, own).float())
        output = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        if not self.guided:
            return output
        conditional, unconditional = output.chunk(2)
        output = unconditional + self.scale_of(x.shape[1], x.device) * (conditional - unconditional)
        if (share := self.sampling.guidance_rescale) == 0:
            return output
        wanted, got = (y.std((1, 2, 3, 4), keepdim=True) for y in (conditional, output))
        return torch.lerp(output, output * (wanted / got), share)

    def scale_of(self, f: int, device: torch.device) -> float | Tensor:
        """The scale of each of f frames, or the one of all."""
        first, last = self.sampling.first_guidance_scale, self.sampling.guidance_scale
        return last if first is None else torch.linspace(first, last, f, device=device)[:, None, None, None]
