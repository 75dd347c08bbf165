"""A small classifier of small-world videos: its features and classes stand in for those of I3D and C3D.

    python -m smallworld.classifier      # some minutes on two cores; writes smallworld/classifier.safetensors

Trained on true renderings at 7 to 32 frames a second, with noise and blur, so that it reads what a checkpoint draws.
Its features know what it was asked (colour, shape, direction, how far a shape goes from frame to frame); it need not
see a fault that changes none of these.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .draw import COLORS, DIRECTIONS, SECONDS, SHAPES, SPEEDS, Scene, frame_times, random_scene, render

FILE = Path(__file__).with_name("classifier.safetensors")
RATES = (7, 8, 14, 16, 28, 32)  # frames a second it is trained on
CLASSES = {"color": list(COLORS), "shape": list(SHAPES), "direction": list(DIRECTIONS)}
FEATURES = 48


class Classifier(nn.Module):
    """Convolutions within frames and between them, each frame's strongest answers, and a linear layer a question."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, FEATURES)
        self.within = nn.ModuleList(
            nn.Conv3d(a, b, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)) for a, b in zip(widths, widths[1:])
        )
        self.between = nn.ModuleList(nn.Conv3d(b, b, (3, 1, 1), padding=(1, 0, 0), bias=False) for b in widths[1:])
        self.norms = nn.ModuleList(nn.GroupNorm(4, b) for b in widths[1:])
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(words)) for name, words in CLASSES.items()})
        self.pace = nn.Linear(FEATURES, 1)  # logarithm of the way from frame to frame

    def features(self, frames: Tensor) -> Tensor:
        """frames: n f h w 3, 0 to 1. Returns n FEATURES."""
        x = frames.movedim(-1, 1) * 2 - 1
        for within, between, norm in zip(self.within, self.between, self.norms):
            h = within(x)
            x = F.silu(norm(h + between(h)))
        return x.amax((3, 4)).mean(2)

    def probabilities(self, features: Tensor) -> Tensor:
        """Of all colours, shapes and directions together: n 72."""
        p = torch.ones(len(features), 1, device=features.device)
        for head in self.heads.values():
            p = (p[:, :, None] * head(features).softmax(-1)[:, None]).flatten(1)
        return p


def load(device: str | torch.device = "cpu") -> Classifier:
    """The trained classifier that lies beside this file."""
    classifier = Classifier()
    classifier.load_state_dict({k: v.float() for k, v in load_file(FILE).items()})
    return classifier.eval().requires_grad_(False).to(device)


def batch(rng: random.Random, generator: torch.Generator, count: int) -> tuple[Tensor, list[Scene], Tensor]:
    """Clips (n f h w 3, 0 to 1), their scenes, and the logarithm of each one's way from frame to frame."""
    frames = rng.choice((14, 16))
    scenes = [random_scene(rng, tail=rng.random() < 0.4) for _ in range(count)]
    rates = [rng.choice(RATES) for _ in scenes]
    starts = [rng.uniform(0, max(0.0, SECONDS - frames / rate)) for rate in rates]
    x = render(scenes, torch.stack([frame_times(frames, r, s) for r, s in zip(rates, starts)]))
    blurred = F.avg_pool2d(x.flatten(0, 1), 3, stride=1, padding=1, count_include_pad=False).view_as(x)
    share = torch.rand(count, 1, 1, 1, 1, generator=generator)
    noise = 0.08 * torch.rand(count, 1, 1, 1, 1, generator=generator) * torch.randn(x.shape, generator=generator)
    x = (torch.lerp(x, blurred, share) + noise).clamp(0, 1)
    way = torch.tensor([SPEEDS[s.speed] / r for s, r in zip(scenes, rates)])
    return x.movedim(2, -1), scenes, way.log()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200, help="of 16 clips (default: 1200)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    args = parser.parse_args()
    torch.manual_seed(0)
    classifier = Classifier().to(args.device)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=args.steps)
    right: list[float] = []
    for step in range(args.steps):
        x, scenes, way = batch(random.Random(f"classifier/{step}"), torch.Generator().manual_seed(step), 16)
        h = classifier.features(x.to(args.device))
        loss = (classifier.pace(h)[:, 0] - way.to(args.device)).square().mean()
        for name, head in classifier.heads.items():
            asked = torch.tensor([CLASSES[name].index(getattr(s, name)) for s in scenes], device=args.device)
            logits = head(h)
            loss = loss + F.cross_entropy(logits, asked)
            right.append((logits.argmax(-1) == asked).float().mean().item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            print(
                f"step {step + 1}: loss {loss.item():.3f}, {sum(right[-150:]) / len(right[-150:]):.3f} right",
                flush=True,
            )
    save_file({k: v.half().cpu().contiguous() for k, v in classifier.state_dict().items()}, FILE)


if __name__ == "__main__":
    main()
