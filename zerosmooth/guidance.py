"""Classifier-free guidance around a network: what it is told in each branch, and how their outputs are put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .bus import Stage
from .models.unet import Skeleton


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
    first_scale, of the last frame, linear from the first one's. rescale: share, 0 to 1, of the guided output that is
    brought to the deviation of the conditional one over each video, against overexposure (Lin et al. 2024, arXiv
    2305.08891, Eq. 15-16). sequential: the branches run one after the other, in half the memory; else in one batch.
    """

    def __init__(
        self,
        unet: Skeleton,
        branches: Sequence[Branch],
        scale: float,
        first_scale: float | None = None,
        rescale: float = 0.0,
        sequential: bool = False,
    ) -> None:
        self.unet, self.dtype = unet, branches[0].context.dtype
        self.scale, self.first_scale, self.rescale = scale, first_scale, rescale
        self.single = not guided(scale, first_scale)
        self.runs = []  # of each run of the network: how many branches, their context and latents
        for group in [branches[:1]] if self.single else [[b] for b in branches] if sequential else [branches]:
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
        if self.single:
            return output
        conditional, unconditional = output.chunk(2)
        output = unconditional + self.scale_of(x.shape[1], x.device) * (conditional - unconditional)
        if self.rescale == 0:
            return output
        wanted, got = (y.std((1, 2, 3, 4), keepdim=True) for y in (conditional, output))
        return torch.lerp(output, output * (wanted / got), self.rescale)

    def scale_of(self, f: int, device: torch.device) -> float | Tensor:
        """The scale of each of f frames, or the one of all."""
        if self.first_scale is None:
            return self.scale
        return torch.linspace(self.first_scale, self.scale, f, device=device)[:, None, None, None]


def guided(scale: float, first_scale: float | None) -> bool:
    """Whether the unconditional branch has a part in the result."""
    return scale != 1 or first_scale not in (None, 1)
