"""A diffusion transformer over pixels, a backbone that the package does not know, made smooth by
the same bus.

    python examples/tiny_dit.py             # seconds: 8, 16 and 32 frames of a disc, and a picture
    python examples/tiny_dit.py --train     # trains it again first: some minutes on two cores

What a network of your own needs is marked (1) to (6); docs/new_backbone.md explains it. The rest is
an ordinary small DiT (Peebles & Xie 2023, arXiv 2212.09748) over frames, with rectified flow (Liu
et al. 2022, arXiv 2209.03003). Its videos have 8 frames of 24 x 24 grey pixels; a label says from
which side a disc crosses them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn

from zerosmooth.attention import SpatialSelfAttention, TemporalAttention, frame_positions
from zerosmooth.bus import Stage, name_modules
from zerosmooth.cascade import nested_noise
from zerosmooth.models.layers import FeedForward, sinusoid
from zerosmooth.pipeline import sample
from zerosmooth.settings import Settings
from zerosmooth.video import picture, write_picture, write_video
from zerosmooth_cli.results import write_tensors

WEIGHTS = Path(__file__).with_suffix(".safetensors")
FRAMES, SIZE, PATCH, DIM, DEPTH, HEADS, LABELS = 8, 24, 4, 48, 3, 3, 4
SIDES = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # direction by label: x, y

# --- the network


class TinyDiT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH**2, DIM)
        self.place = nn.Parameter(0.02 * torch.randn((SIZE // PATCH) ** 2, DIM))  # of each token
        self.time = nn.Sequential(nn.Linear(DIM, DIM), nn.SiLU(), nn.Linear(DIM, DIM))
        self.label = nn.Embedding(LABELS, DIM)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(DIM)
        self.out = nn.Linear(DIM, PATCH**2)
        name_modules(self)  # (2) each attention module gets its name on the bus: its path

    def forward(self, x: Tensor, t: Tensor, label: Tensor, stage: Stage | None = None) -> Tensor:
        """x: b f 1 h w; t: b, from 0 (data) to 1 (noise); label: b. Returns the velocity, noise
        minus data, in the shape of x.

        (1) The stage is an argument, handed to every attention module. None: the plain network.
        """
        h = rearrange(x, "b f 1 (h p) (w q) -> b f (h w) (p q)", p=PATCH, q=PATCH)
        h = self.embed(h) + self.place
        h = h + sinusoid(self.positions(x.shape[1], stage), DIM).to(h)[:, None]
        condition = self.time(sinusoid(1000 * t, DIM).to(h)) + self.label(label)  # b d
        for block in self.blocks:
            h = block(h, condition, stage)
        v = self.out(self.norm(h))
        return rearrange(v, "b f (h w) (p q) -> b f 1 (h p) (w q)", h=SIZE // PATCH, p=PATCH)

    def positions(self, f: int, stage: Stage | None) -> Tensor:
        """(4) Absolute positions of f frames: key frames keep theirs when frames come between."""
        return frame_positions(f, stage)


class Block(nn.Module):
    """h: b f l d. Attention within frames, attention along frames, feed-forward; each modulated by
    the condition."""

    def __init__(self) -> None:
        super().__init__()
        # (3) Attention comes from the package, which publishes, corrects and blends. Relative
        # positions would be an argument of TemporalAttention; for a prompt, use CrossAttention.
        self.spatial = SpatialSelfAttention(DIM, HEADS, DIM // HEADS)
        self.temporal = TemporalAttention(DIM, HEADS, DIM // HEADS)
        self.ff = FeedForward(DIM)
        self.norms = nn.ModuleList(nn.LayerNorm(DIM, elementwise_affine=False) for _ in range(3))
        self.modulation = nn.Linear(DIM, 9 * DIM)

    def forward(self, h: Tensor, condition: Tensor, stage: Stage | None) -> Tensor:
        shifts = self.modulation(F.silu(condition))[:, None, None].chunk(9, dim=-1)
        layers: tuple[Callable[[Tensor], Tensor], ...] = (
            partial(self.spatial, stage=stage), partial(self.temporal, stage=stage), self.ff)
        for i, (layer, norm) in enumerate(zip(layers, self.norms)):
            scale, shift, gate = shifts[3 * i : 3 * i + 3]
            h = h + gate * layer(norm(h) * (1 + scale) + shift)
        return h


# --- its sampler


class Flow:
    """(5) Euler steps along the straight paths of rectified flow, with the methods of a
    `zerosmooth.samplers.Sampler`."""

    stochastic = False  # no step adds noise

    def __init__(self, steps: int) -> None:
        self.times = torch.linspace(1, 0, steps + 1).tolist()

    def __len__(self) -> int:
        return len(self.times) - 1

    def timestep(self, i: int) -> float:
        return self.times[i]

    def share(self, i: int) -> float:
        """t/T of Eq. 24: the share of noise that is left."""
        return self.times[i]

    def start(self, noise: Tensor) -> Tensor:
        return noise

    def network_input(self, i: int, x: Tensor) -> Tensor:
        return x

    def x0(self, i: int, x: Tensor, output: Tensor) -> Tensor:
        return x - self.times[i] * output

    def noised(self, i: int, x0: Tensor, noise: Tensor) -> Tensor:
        return x0 + self.times[i] * (noise - x0)

    def step(self, i: int, x: Tensor, x0: Tensor, noise: Tensor | None) -> Tensor:
        return x0 + self.times[i + 1] / self.times[i] * (x - x0)


def smooth(network: TinyDiT, settings: Settings, label: int, seed: int,
           steps: int = 20) -> list[Tensor]:
    """Videos of one cascade: f h w, 0 to 1, of each stage."""
    sampler, cascade = Flow(steps), settings.cascade

    def told(step: int, index: int, x: Tensor, stage: Stage | None) -> Tensor:
        """(6) One step of one stage. A stage's own condition (its frame rate, say) goes in here;
        so does guidance, in one batch, or with `dataclasses.replace(stage, branch=1)` for its
        second branch."""
        t = torch.full((len(x),), sampler.times[step])
        return network(x, t, torch.full((len(x),), label), stage)

    def noise(step: int) -> Tensor:
        shape = 1, SIZE, SIZE
        return nested_noise(shape, cascade.key_frames, cascade.scales, seed, step)[None]

    with torch.inference_mode():
        xs = sample(told, sampler, settings, noise, settings.bus())
    return [(x[0, :, 0] + 1) / 2 for x in xs]


# --- its world, and its training


def draw(labels: Tensor, offset: Tensor, frames: int) -> Tensor:
    """Discs that cross the frame: b f 1 h w in [-1, 1]. labels: b; offset: b 2, of their paths from
    the middle, in pixels."""
    along = 12.0 * (torch.arange(frames) / frames - 0.5)  # the same path for any number of frames
    center = SIZE / 2 + offset[:, None] + SIDES[labels][:, None] * along[:, None]  # b f 2
    at = torch.arange(SIZE) + 0.5
    dx, dy = at - center[..., 0, None], at - center[..., 1, None]
    distance = (dx[..., None, :] ** 2 + dy[..., :, None] ** 2).sqrt()
    return (2 * (4.5 - distance).clamp(0, 1) - 1)[:, :, None]


def train(steps: int) -> TinyDiT:
    torch.manual_seed(0)
    network = TinyDiT()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        labels = torch.randint(LABELS, (24,))
        x0 = draw(labels, 2 * torch.randn(24, 2), FRAMES)
        # more of the noisy times, which decide where the disc goes
        noise, t = torch.randn_like(x0), torch.rand(24).sqrt()
        share = t.view(-1, 1, 1, 1, 1)
        v = network((1 - share) * x0 + share * noise, t, labels)
        loss = (v - (noise - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} of {steps}: loss {loss.item():.3f}", flush=True)
    return network


def trained() -> TinyDiT:
    network = TinyDiT()
    network.load_state_dict({name: x.float() for name, x in load_file(WEIGHTS).items()})
    return network.eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--train", type=int, nargs="?", const=3000, metavar="STEPS",
        help="train first (default: 3000)")
    add("--label", type=int, choices=range(LABELS), default=0, help="where the disc goes")
    add("--seed", type=int, default=0, help="of the noise (default: 0)")
    add("--method", default="zerosmooth", help="or a baseline (default: zerosmooth)")
    add("--outdir", type=Path, default=Path("outputs"), help="of the results (default: outputs)")
    args = parser.parse_args()
    if args.train:
        state = train(args.train).state_dict()
        write_tensors(WEIGHTS, {name: x.half() for name, x in state.items()})
    settings = Settings(key_frames=FRAMES, method=args.method)
    grey = [(x.clamp(0, 1) * 255).round().byte()[..., None]
            for x in smooth(trained(), settings, args.label, args.seed)]
    frames, rates = [x.expand(-1, -1, -1, 3).numpy() for x in grey], [8.0, 16.0, 32.0]
    args.outdir.mkdir(parents=True, exist_ok=True)
    for x, rate in zip(frames, rates):
        write_video(args.outdir / f"tiny_dit_{len(x)}f.mp4", x, rate)
    write_picture(args.outdir / "tiny_dit.png", picture(frames, rates))
    print(f"written: {args.outdir}/tiny_dit_*.mp4 and {args.outdir}/tiny_dit.png")


if __name__ == "__main__":
    main()
