"""Classifier-free guidance (Ho & Salimans 2022) around a network."""

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
    """What conditions the network in one branch of guidance."""

    context: Tensor  # n m c, the encoder's output
    latents: Tensor | None = None  # n c h w, set beside the noisy latents of every frame


@dataclass(frozen=True)
class Inputs:
    """What n videos are made from; empty where the family does not take it."""

    prompts: list[str]
    pixels: Tensor = torch.empty(0)  # n 3 h w in [-1, 1], float32
    noise: Tensor = torch.empty(0)  # standard normal, like pixels


class Guidance:
    """A guided network; on a bus, each branch is corrected by its own states.

    branches: the conditional one, then the unconditional one, which runs only where the result
    depends on it; or the first alone, of a guidance-distilled network. sampling: the guidance
    scale, of all frames or rising linearly from that of the first; and the rescaling, which takes
    the output's standard deviation over each video back towards the conditional one's (Lin et al.
    2024, arXiv 2305.08891, Eq. 15-16). sequential: branches run one after the other, in half the
    memory.
    """

    def __init__(self, unet: Skeleton, branches: Sequence[Branch], sampling: Sampling,
                 sequential: bool = False) -> None:
        self.unet, self.dtype, self.sampling = unet, branches[0].context.dtype, sampling
        self.guided = sampling.guided and len(branches) > 1
        branches = branches if self.guided else branches[:1]
        self.runs = []  # of each run of the network: number of branches, their context and latents
        for group in [[branch] for branch in branches] if sequential else [branches]:
            context = unet.project_context(torch.cat([b.context for b in group]))
            latents = [b.latents[:, None] for b in group if b.latents is not None]
            self.runs.append((len(group), context, torch.cat(latents) if latents else None))

    def __call__(self, x: Tensor, timestep: float, condition: Tensor | None,
                 stage: Stage | None) -> Tensor:
        """The guided output: b f c h w, as x, float32. condition: of every video in this stage, see
        `Family.condition`."""
        outputs = []
        for i, (branches, context, latents) in enumerate(self.runs):
            shown = torch.cat([x] * branches).to(self.dtype)
            b, f = shown.shape[:2]
            if latents is not None:
                shown = torch.cat([shown, latents.expand(-1, f, -1, -1, -1)], dim=2)
            t = torch.full((b,), timestep, device=x.device)
            told = None if condition is None else condition.to(x.device).expand(b, *condition.shape)
            own = stage if stage is None or i == 0 else replace(stage, branch=i)
            outputs.append(self.unet(shown, t, context, told, own).float())
        output = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        if not self.guided:
            return output
        conditional, unconditional = output.chunk(2)
        output = unconditional + self.scale_of(len(x[0]), x.device) * (conditional - unconditional)
        if (share := self.sampling.guidance_rescale) == 0:
            return output
        wanted, got = (y.std((1, 2, 3, 4), keepdim=True) for y in (conditional, output))
        return torch.lerp(output, output * (wanted / got), share)

    def scale_of(self, f: int, device: torch.device) -> float | Tensor:
        """The guidance scale of each of f frames, or the one of all."""
        first, last = self.sampling.first_guidance_scale, self.sampling.guidance_scale
        if first is None:
            return last
        return torch.linspace(first, last, f, device=device)[:, None, None, None]
