"""The exact world: textures that move, whose best denoiser is known in closed form.

    python -m evaluation.exact                                      # all rows, some minutes
    python -m evaluation.exact --motion "pan 4" --rows lines carried lines:join=0.6
    python -m evaluation.exact --rows blend minterpolate rife --interpolator rife.pt
    python -m evaluation.exact --motion "bounce 4" --rows hold blend carried --picture bounce.png

A video of one motion m, over a Gaussian random texture, is itself Gaussian, with covariance K_m of
its pixels. So E[x0 | x_t] = (1-t) K_m ((1-t)^2 K_m + t^2)^-1 x_t, and for several possible motions
the mean of these, weighted by how likely each makes x_t. The network is exact at any speed, without
training: what is wrong with a dense video is the correction's fault alone. See docs/exact.md.

A line a row. residual: mean square difference of inserted frames from the key frames carried along
the true motion, over the variance; contrast: their deviation over the key frames'; keys: PSNR of
key frames against the base video's.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from zerosmooth.attention import fusion_matrix, windows
from zerosmooth.bus import Stage
from zerosmooth.cascade import nested_noise
from zerosmooth.extensions import LIFTS, METHODS
from zerosmooth.fields import Range, UserError, check
from zerosmooth.pipeline import sample
from zerosmooth.settings import Settings, options
from zerosmooth_cli.command import run_command

from .interpolators import Interpolator, open_interpolators

FRAMES, SIZE, CHANNELS = 8, 16, 3
DEVIATION = 32  # of 255, that interpolators are shown
MID = (SIZE - 1) / 2
Y, X = torch.meshgrid(torch.arange(float(SIZE)), torch.arange(float(SIZE)), indexing="ij")
PILLAR = (X - MID).abs() < 2.5  # pixels before which a still texture of its own stands
KINDS = ("pan", "rise", "turn", "shear", "speed", "bounce", "hide")
ROWS = ("windowed", "freenoise", "ddnm", "lines", "carried", "lines:join=0.6", "carried:join=0.6")


@dataclass(frozen=True)
class Motion:
    """pan, rise: by `amount` pixels a key frame to the right, or down; turn: by so many radians;
    shear: rows in opposite directions; speed: a pan that speeds up from rest, twice as fast in the
    end; bounce: a pan that turns back between key frames; hide: a pan behind a still pillar."""

    kind: str
    amount: float

    def seen(self, time: Tensor, x: Tensor = X, y: Tensor = Y,
             way: int = 1) -> tuple[Tensor, Tensor]:
        """The place of the texture that pixel x, y sees at a time in key frames; with way = -1 the
        pixel that sees place x, y."""
        a = way * self.amount
        if self.kind == "rise":
            return x, y + a * time
        if self.kind == "turn":
            c, s = (a * time).cos(), (a * time).sin()
            return MID + (x - MID) * c - (y - MID) * s, MID + (x - MID) * s + (y - MID) * c
        if self.kind == "shear":
            return x + a * time * torch.tanh((y - MID) / 2), y
        if self.kind == "speed":
            return x + a * time**2 / (FRAMES - 1), y
        if self.kind == "bounce":
            time = (time % 5 - 2.5).abs()  # turns at 2.5, 5, 7.5, ..
        return x + a * time, y

    def layer(self) -> Tensor:
        """Which of two textures each pixel sees: 1 for a still one in front."""
        return (PILLAR if self.kind == "hide" else torch.zeros_like(PILLAR)).float()

    def covariance(self, times: Tensor) -> Tensor:
        """Of all pixels of frames at these times: f*h*w f*h*w."""
        t, front = times[:, None, None], self.layer().expand(len(times), -1, -1)
        u, v = (z.expand(len(times), SIZE, SIZE) for z in self.seen(t))
        u, v = torch.where(front > 0, X, u).flatten(), torch.where(front > 0, Y, v).flatten()
        r2 = (u[:, None] - u) ** 2 + (v[:, None] - v) ** 2
        k = 0.8 * (-r2 / (2 * 2.2**2)).exp() + 0.2 * (-r2 / (2 * 0.9**2)).exp()
        return k * (front.flatten()[:, None] == front.flatten())

    @property
    def still(self) -> bool:
        """Whether all stretches of one length look alike, whenever they begin."""
        return self.kind not in ("speed", "bounce")


@cache
def spectrum(motion: Motion, start: float, rate: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues and vectors of a window's covariance. start: in key frames."""
    values, vectors = torch.linalg.eigh(motion.covariance(start + torch.arange(FRAMES) / rate))
    return values.clamp(min=1e-5), vectors


class Exact:
    """E[x0 | x_t] of windows, whose outputs are fused, of motions that are equally likely."""

    def __init__(self, motions: Sequence[Motion]) -> None:
        self.motions = motions
        self.likely = torch.zeros(0)  # b m, of the first window of the last call for stage 0

    def window(self, x: Tensor, t: float, start: float, rate: int) -> tuple[Tensor, Tensor]:
        """E[x0 | x_t] and the probability of each motion. x: b f c h w."""
        z, outputs, logs = x.transpose(1, 2).flatten(2), [], []
        for m in self.motions:
            values, vectors = spectrum(m, 0.0 if m.still else start, rate)
            a, variance = z @ vectors, (1 - t) ** 2 * values + t**2
            logs.append(-0.5 * ((a**2 / variance).sum((1, 2)) + CHANNELS * variance.log().sum()))
            outputs.append((a * ((1 - t) * values / variance)) @ vectors.T)
        p = torch.stack(logs, 1).softmax(1)
        mean = torch.einsum("bm,mbcn->bcn", p, torch.stack(outputs))
        return mean.unflatten(2, (-1, SIZE, SIZE)).transpose(1, 2), p

    def __call__(self, x: Tensor, t: float, rate: int, stage: Stage | None) -> Tensor:
        spans = windows(x.shape[1], FRAMES, FRAMES // 2 if stage is None else stage.overlap)
        out = torch.zeros_like(x)
        for i, ((start, end), share) in enumerate(zip(spans, fusion_matrix(spans))):
            y, p = self.window(x[:, start:end], t, start / rate, rate)
            out[:, start:end] += share.view(1, -1, 1, 1, 1) * y
            if rate == 1 and i == 0:
                self.likely = p
        return out


class Flow:
    """Euler's method on rectified flow, x_t = (1-t) x0 + t noise, for a network that predicts x0:
    see samplers.Sampler."""

    stochastic = False

    def __init__(self, steps: int) -> None:
        self.times = torch.linspace(1, 0, steps + 1).tolist()

    def __len__(self) -> int:
        return len(self.times) - 1

    def timestep(self, i: int) -> float:
        return self.times[i]

    share = timestep

    def start(self, noise: Tensor) -> Tensor:
        return noise

    def network_input(self, i: int, x: Tensor) -> Tensor:
        return x

    def x0(self, i: int, x: Tensor, output: Tensor) -> Tensor:
        return output

    def noised(self, i: int, x0: Tensor, noise: Tensor) -> Tensor:
        return x0 + self.times[i] * (noise - x0)

    def step(self, i: int, x: Tensor, x0: Tensor, noise: Tensor | None) -> Tensor:
        return x0 + self.times[i + 1] / self.times[i] * (x - x0)


def make(motions: Sequence[Motion], settings: Settings,
         seeds: Sequence[int]) -> tuple[list[Tensor], list[Motion]]:
    """Videos of all stages, b t_s c h w, and the motion that each has."""
    network, cascade = Exact(motions), settings.cascade
    sampler = Flow(settings.steps)

    def noise(step: int) -> Tensor:
        shape = CHANNELS, SIZE, SIZE
        return torch.stack([nested_noise(shape, FRAMES, cascade.scales, s, step) for s in seeds])

    def run(step: int, s: int, x: Tensor, stage: Stage | None) -> Tensor:
        return network(x, sampler.timestep(step), cascade.scale_of(s), stage)

    xs = sample(run, sampler, settings, noise, settings.bus())
    return xs, [motions[i] for i in network.likely.argmax(1).tolist()]


def measure(dense: Tensor, motions: Sequence[Motion]) -> tuple[float, float]:
    """Residual and contrast of inserted frames. dense: b n*k c h w."""
    n, residuals, contrasts = dense.shape[1] // FRAMES, [], []
    for x, m in zip(dense, motions):
        for k in range(FRAMES - 1):
            variance = (x[k * n].var() + x[(k + 1) * n].var()) / 2
            for frame, j in ((x[k * n + j], j) for j in range(1, n)):
                error, weight = torch.zeros(()), torch.zeros(())
                for key in (k, k + 1):
                    carried, known = carry(x[key * n], m, key, k + j / n)
                    error += ((frame - carried).square() * known).sum() / CHANNELS
                    weight += known.sum()
                residuals.append((error / weight / variance).item())
                contrasts.append((frame.std() / variance.sqrt()).item())
    return sum(residuals) / len(residuals), sum(contrasts) / len(contrasts)


def carry(frame: Tensor, m: Motion, time: float, to: float) -> tuple[Tensor, Tensor]:
    """What a frame at one time shows of another, and where it does, 0 or 1: by the motion's law."""
    at = torch.stack(m.seen(torch.tensor(time), *m.seen(torch.tensor(to)), way=-1))
    known = ((at >= -0.5) & (at <= SIZE - 0.5)).all(0).float()
    front = m.layer()
    grid = at.permute(1, 2, 0)[None] * 2 / (SIZE - 1) - 1
    if m.kind == "hide":  # what the pillar hides is not known, and the pillar stands still
        hidden = F.grid_sample(front[None, None], grid, align_corners=True)[0, 0] > 0
        known = torch.where(front > 0, 1.0, known * ~hidden)
    moved = F.grid_sample(frame[None], grid, "bicubic", "border", align_corners=True)[0]
    return torch.where(front > 0, frame, moved), known


def truth(keys: Tensor, m: Motion, n: int) -> Tensor:
    """The video that a video's key frames tell, by the motion's law: k c h w to n*(k-1)+1 c h w."""
    frames = []
    for k, j in ((k, j / n) for k in range(FRAMES - 1) for j in range(n)):
        (before, known), (after, known_after) = (carry(keys[i], m, i, k + j) for i in (k, k + 1))
        a, b = known * (1 - j), known_after * j
        frames.append((before * a + after * b) / (a + b).clamp(min=1e-6))
    return torch.stack([*frames, keys[-1]])


def draw(rows: dict[str, Tensor], path: Path) -> None:
    """One line of pixels over time, of a video a row: f c h w each, all of as many frames."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(rows), figsize=(2.1 * len(rows), 1.6), layout="tight")
    for ax, (name, x) in zip(axes, rows.items()):
        line = x[:, :, SIZE // 2].permute(2, 0, 1) * 1.6 * DEVIATION / 255 + 0.5
        ax.imshow(line.clamp(0, 1), aspect="auto", interpolation="nearest")
        ax.set_title(name, fontsize=9)
        ax.set_xticks([]), ax.set_yticks([])
    figure.savefig(path, dpi=110)


def settings_of(row: str, steps: int, scale: int) -> Settings:
    """A row's settings: a method, or a lift of predictions, and changes behind a colon. UserError
    if there is none such."""
    name, _, changes = row.partition(":")
    known = {option.name: option for option in options(Settings)}
    own = {}
    for change in filter(None, changes.split(",")):
        key, _, value = change.partition("=")
        if key not in known:
            raise UserError(f"row {row!r} changes {key!r}; use one of {', '.join(known)}")
        own[key] = known[key].read(value)
    there = [x for x in (*METHODS, *LIFTS) if x not in ("zerosmooth", "direct")]  # no attention
    if name not in there:
        raise UserError(f"no row {row!r}; use {', '.join(there)}")
    method = {"method": name} if name in METHODS else {"prediction": name, "strength": 0.0}
    return Settings(**{"steps": steps, "scale": scale, "key_frames": FRAMES, "eta": 0.0,
                       **method, **own})


def interpolated(keys: Tensor, n: int, by: Interpolator) -> Tensor:
    """What an interpolator of pictures makes of key frames. b k c h w to b n*k c h w, of which the
    last show the last key frame."""
    shown = (keys * DEVIATION + 127.5).round().clamp(0, 255).byte().permute(0, 1, 3, 4, 2)
    made = torch.stack([by(x, n, "", 0) for x in shown]).permute(0, 1, 4, 2, 3)
    made = torch.cat([made, *[made[:, -1:]] * (n - 1)], 1)
    return (made.float() - 127.5) / DEVIATION


def parse(text: str) -> list[Motion]:
    """ "pan 4" is one motion, "pan 4 + turn 0.4 + ..": a world where each is as likely."""
    motions = []
    for part in text.split("+"):
        kind, _, amount = part.strip().partition(" ")
        try:
            motions.append(Motion(kind, float(amount)))
        except ValueError:
            kind = ""
        if kind not in KINDS:
            raise UserError(f"motion {part.strip()!r}; write {', '.join(KINDS)} and an amount")
    return motions


FOUR = "pan 4 + pan -4 + rise 4 + rise -4"
WORLDS = ("pan 0.25", "pan 0.75", "pan 2", FOUR, "pan 6", "turn 0.4 + turn -0.4",
          "shear 4 + shear -4", f"{FOUR} + turn 0.4 + turn -0.4 + shear 4 + shear -4",
          "speed 4", "bounce 4", "hide 4")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m evaluation.exact", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--motion", nargs="+", default=WORLDS, metavar="MOTION",
                        help="such as 'pan 4', or several, equally likely: 'pan 4 + pan -4'")
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="ROW",
                        help=f"methods and corrections, with changes: {', '.join(ROWS)}")
    parser.add_argument("--scale", type=int, default=4, help="frames a key frame (default: 4)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default: 20)")
    parser.add_argument("--n", type=int, default=4, help="videos (default: 4)")
    parser.add_argument("--interpolator", nargs="+", type=Path, default=[], metavar="FILE",
                        help="TorchScript files, rows of their names beside hold, blend and "
                             "minterpolate, which fill in the key frames")
    parser.add_argument("--picture", type=Path, metavar="FILE",
                        help="draw one line of pixels over time, of the first motion's rows")
    args = parser.parse_args(argv)
    return run_command("exact", lambda: measure_rows(args), "")


def measure_rows(args: argparse.Namespace) -> int:
    """Print a line for each motion and row. UserError, before any is made, for what cannot be."""
    check("--n", args.n, int, Range(1, 10_000))
    if args.scale not in (2, 4, 8):
        raise UserError(f"--scale {args.scale}; use 2, 4 or 8")
    if args.picture and args.picture.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--picture {args.picture} must end in .png, .svg or .pdf")
    worlds = {text: parse(text) for text in args.motion}
    fillers = open_interpolators(args.interpolator, torch.device("cpu"), torch.float32)
    made_by = {row: settings_of("lines" if row in fillers else row, args.steps,
                                1 if row in fillers else args.scale) for row in args.rows}
    bent = [text for text, of in worlds.items() if not all(motion.still for motion in of)]
    for row, settings in made_by.items():  # whose windows do not say where they begin
        if bent and METHODS[settings.method].slides:
            raise UserError(f"the row {row} cannot be made of {bent[0]!r}, where windows differ")
    drawn: dict[str, Tensor] = {}
    for text, world in worlds.items():
        spectrum.cache_clear()
        for row, settings in made_by.items():
            xs, motions = make(world, settings, range(50, 50 + args.n))
            if row in fillers:
                xs.append(interpolated(xs[0], args.scale, fillers[row]))
            if args.picture and text == args.motion[0]:
                drawn[row] = xs[-1][0, : args.scale * (FRAMES - 1) + 1]
                told = truth(xs[0][0], motions[0], args.scale)
            residual, contrast = measure(xs[-1], motions)
            error = (xs[-1][:, :: args.scale] - xs[0]).square().mean().item()
            keys = f"{10 * math.log10(1 / error):.1f} dB" if error else "bitwise"
            name = text if len(text) < 24 else f"{text.count('+') + 1} motions, {text[:8]}"
            print(f"{name:24} {row:18} residual {residual:.4f}  contrast {contrast:.3f}  "
                  f"keys {keys}", flush=True)
    if args.picture:
        draw(drawn | {"truth": told}, args.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
