"""A small classifier of small-world videos: its features and classes stand in for those of I3D and
C3D.

    python -m smallworld.classifier     # minutes on two cores; writes classifier.safetensors

Trained on true renderings at 7 to 32 frames a second, with noise and blur, so that it can read what
a checkpoint draws. Its features know what it was asked: colour, shape, direction, and how far a
shape moves from frame to frame. A fault that changes none of these may escape it.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import draw

FILE = Path(__file__).with_name("classifier.safetensors")
RATES = (7, 8, 14, 16, 28, 32)  # frames a second it is trained on
CLASSES = {name: list(draw.WORDS[name]) for name in ("color", "shape", "direction")}
FEATURES = 48


class Classifier(nn.Module):
    """Convolutions within frames and between them, each frame's maxima averaged over frames, and a
    linear layer for each question."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((3, 16), (16, 32), (32, FEATURES))
        self.within = nn.ModuleList(nn.Conv3d(a, b, (1, 3, 3), (1, 2, 2), padding=(0, 1, 1))
                                    for a, b in sizes)
        self.between = nn.ModuleList(nn.Conv3d(b, b, (3, 1, 1), padding=(1, 0, 0), bias=False)
                                     for _, b in sizes)
        self.norms = nn.ModuleList(nn.GroupNorm(4, b) for _, b in sizes)
        self.heads = nn.ModuleDict({k: nn.Linear(FEATURES, len(v)) for k, v in CLASSES.items()})
        self.pace = nn.Linear(FEATURES, 1)  # logarithm of the way from frame to frame

    def features(self, frames: Tensor) -> Tensor:
        """frames: n f h w 3, 0 to 1. Returns n FEATURES."""
        x = frames.movedim(-1, 1) * 2 - 1
        for within, between, norm in zip(self.within, self.between, self.norms):
            h = within(x)
            x = F.silu(norm(h + between(h)))
        return x.amax((3, 4)).mean(2)

    def probabilities(self, features: Tensor) -> Tensor:
        """Of every combination of colour, shape and direction: n 72."""
        p = torch.ones(len(features), 1, device=features.device)
        for head in self.heads.values():
            p = (p[:, :, None] * head(features).softmax(-1)[:, None]).flatten(1)
        return p


def load(device: str | torch.device = "cpu") -> Classifier:
    """The trained classifier, from the file beside this one."""
    classifier = Classifier()
    classifier.load_state_dict({k: v.float() for k, v in load_file(FILE).items()})
    return classifier.eval().requires_grad_(False).to(device)


def batch(rng: random.Random, generator: torch.Generator,
          count: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Clips (n f h w 3, 0 to 1), the index of each one's word in CLASSES by kind, and the logarithm
    of the way that each one's shape moves from frame to frame."""
    frames = rng.choice((14, 16))
    scenes = [draw.random_scene(rng, tail=rng.random() < 0.4) for _ in range(count)]
    rates = [rng.choice(RATES) for _ in scenes]
    starts = [rng.uniform(0, max(0.0, draw.SECONDS - frames / rate)) for rate in rates]
    times = [draw.frame_times(frames, *when) for when in zip(rates, starts)]
    x = draw.render(scenes, torch.stack(times))
    flat = x.flatten(0, 1)
    blurred = F.avg_pool2d(flat, 3, stride=1, padding=1, count_include_pad=False).view_as(x)
    share, level = (torch.rand(count, 1, 1, 1, 1, generator=generator) for _ in range(2))
    noise = 0.08 * level * torch.randn(x.shape, generator=generator)
    x = (torch.lerp(x, blurred, share) + noise).clamp(0, 1)
    way = torch.tensor([draw.SPEEDS[s.speed] / r for s, r in zip(scenes, rates)])
    asked = {name: torch.tensor([words.index(getattr(s, name)) for s in scenes])
             for name, words in CLASSES.items()}
    return x.movedim(2, -1), asked, way.log()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200, help="of 16 clips (default: 1200)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    args = parser.parse_args()
    torch.manual_seed(0)
    classifier = Classifier().to(args.device)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=args.steps)
    right: list[float] = []
    for step in range(args.steps):
        generator = torch.Generator().manual_seed(step)
        x, asked, way = batch(random.Random(f"classifier/{step}"), generator, 16)
        h = classifier.features(x.to(args.device))
        loss = (classifier.pace(h)[:, 0] - way.to(args.device)).square().mean()
        for name, head in classifier.heads.items():
            logits, index = head(h), asked[name].to(args.device)
            loss = loss + F.cross_entropy(logits, index)
            right.append((logits.argmax(-1) == index).float().mean().item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            share = sum(right[-150:]) / len(right[-150:])
            print(f"step {step + 1}: loss {loss.item():.3f}, {share:.3f} right", flush=True)
    save_file({k: v.half().cpu().contiguous() for k, v in classifier.state_dict().items()}, FILE)


if __name__ == "__main__":
    main()
