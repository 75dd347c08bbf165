"""2 and 4 times the frames a second of a model that attends over all frames at once.

A clip of 1 + nm frames is 1 + m latents, and the same seconds at twice the rate are 1 + 2m. The
longer clip is the same network's, told that its latents stand half as far apart; all clips are
denoised in step, from the key video up to the densest.

No latent of a denser clip but the first is a latent of the one before: sampling, S, holds on
decoded frames alone. `ThroughFrames` corrects them there. `Pairs` is cheap and stays in latents: a
linear map tells each latent of the shorter clip from the n of the longer that hold its frames.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from zerosmooth.bus import HiddenStateBus, Stage
from zerosmooth.cascade import nested_noise
from zerosmooth.extensions.predictions import Lift, lines
from zerosmooth.fields import UserError

from .samplers import FlowConfig

AT = 0.5, 0.7, 0.9  # shares of the steps after which frames are corrected, unless asked otherwise
Predict = Callable[[float, Tensor, Tensor, Stage], Tensor]  # (timestep, x, positions, stage) -> v
Correct = Callable[[int, Tensor, Tensor], Tensor]  # (step, data, data of the clip before) -> data


def keep(step: int, x0: Tensor, y: Tensor) -> Tensor:
    return x0


def last_frames(f: int, n: int) -> Tensor:
    """Positions of f latents, n for one of the key video: where the last frame of each stands."""
    return torch.arange(f) / n


def sample_dense(predict: Predict, config: FlowConfig, steps: int, noise: Sequence[Tensor],
                 window: int, overlap: int, correct: Correct = keep, join: int = 0,
                 begin: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """The latents of all clips, b f c h w, the key video's first: just what it is alone.

    noise: of each clip, of 1 + m, 1 + 2m, .. latents, else ValueError. window, overlap: latents
    that attend to each other, and how many of them two windows share. correct: of each longer
    clip's predicted data. join: the step at which longer clips begin, as what `begin` makes of the
    predicted data of the clip before, with noise.
    """
    if any(e.shape[1] != 2 * before.shape[1] - 1 for before, e in zip(noise, noise[1:])):
        raise ValueError(f"clips of {[e.shape[1] for e in noise]} latents; each must have one less "
                         "than twice those of the one before")
    if not 0 <= join < steps or join > 0 and begin is None:
        raise ValueError(f"join={join} of {steps} steps; give one of them, and how to begin")
    bus = HiddenStateBus(window, (2,) * (len(noise) - 1), overlap)
    samplers = [config.sampler(steps) for _ in noise]
    xs, data = list(noise if join == 0 else noise[:1]), noise[0]
    for i in range(steps):
        if 0 < i == join:
            assert begin is not None
            for sampler, e in zip(samplers[1:], noise[1:]):
                data = begin(data)
                xs.append(sampler.noised(i, data, e))
        x0s: list[Tensor] = []
        for s, (sampler, x) in enumerate(zip(samplers, xs)):
            positions = last_frames(x.shape[1], 2**s).to(x.device)
            v = predict(sampler.timestep(i), x, positions, bus.stage(s, i))
            x0 = sampler.x0(i, x, v)
            x0s.append(x0 if s == 0 else correct(i, x0, x0s[-1]))
        data = x0s[0]
        xs = [sampler.step(i, x, x0) for sampler, x, x0 in zip(samplers, xs, x0s)]
    return xs


def noises(shape: Sequence[int], f: int, clips: int, seed: int) -> list[Tensor]:
    """Standard normal noise of each clip, f c h w, f latents in the first. One seed gives the same
    key video whatever follows it."""
    return [nested_noise(shape, (f - 1) * 2**s + 1, (), seed, -1 - s) for s in range(clips)]


def step_at(share: float, steps: int) -> int:
    """The step that comes after this share of all; the last one at most. UserError for another
    share than 0 to 1."""
    if not 0 <= share <= 1:
        raise UserError(f"{share} of the steps; shares (at, join) are 0 to 1")
    return min(round(share * steps), steps - 1)


def corrected(frames: Tensor, keys: Tensor, lift: Lift = lines) -> Tensor:
    """Frames whose every n-th is a key frame, and whose others are corrected as their neighbours.

    frames: b 1+nm c h w, keys: b 1+m c h w. Where both agree nothing changes."""
    n, rest = divmod(frames.shape[1] - 1, max(1, keys.shape[1] - 1))
    if rest or n < 1:
        raise ValueError(f"{frames.shape[1]} frames for {keys.shape[1]} key frames")
    change = lift(n, keys - frames[:, ::n], keys)[:, : frames.shape[1]]
    frames = frames + change
    frames[:, ::n] = keys
    return frames


@dataclass(frozen=True)
class ThroughFrames:
    """The correction through frames: z becomes z + E(D(z)^) - E(D(z)).

    D(z)^ are the decoded frames, corrected by those of the clip before. E and D are no inverses of
    each other, so the difference of two encodings is added: where the frames agree nothing changes,
    and what the autoencoder cannot hold of z stays. Once it is added the frames are near the key
    frames, not equal; each round takes them nearer.

    vae: has encode and decode. steps: in which it is done; a round decodes the clip once and
    encodes it twice. chunk: latents at a time in the autoencoder.
    """

    vae: object
    lift: Lift = lines
    steps: Container[int] = range(1 << 30)
    rounds: int = 1
    chunk: int | None = None

    def __call__(self, step: int, x0: Tensor, y: Tensor) -> Tensor:
        if step not in self.steps:
            return x0
        keys = self.decode(y)
        for _ in range(self.rounds):
            frames = self.decode(x0)
            wanted = corrected(frames, keys, self.lift)
            x0 = x0 + (self.encode(wanted) - self.encode(frames)).to(x0)
        return x0

    def begin(self, y: Tensor) -> Tensor:
        """Twice the frames, interpolated, as latents."""
        keys = self.decode(y)
        return self.encode(self.lift(2, keys, keys)[:, :-1]).to(y)

    def decode(self, z: Tensor) -> Tensor:
        return self.vae.decode(z, self.chunk).clamp(-1, 1)  # type: ignore[attr-defined]

    def encode(self, x: Tensor) -> Tensor:
        return self.vae.encode(x, self.chunk)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Pairs:
    """Back-projection in latents by a linear map M, c x 2c: latent k >= 1 of the shorter clip is M
    (z_2k-1, z_2k) + bias, about. The first latents are one and the same. `Pairs.averages` is A2."""

    matrix: Tensor
    bias: Tensor

    @classmethod
    def averages(cls, channels: int) -> Pairs:
        half = torch.eye(channels) / 2
        return cls(torch.cat([half, half], dim=1), torch.zeros(channels))

    @classmethod
    def fitted(cls, shorter: Tensor, longer: Tensor) -> Pairs:
        """By least squares, to latents of clips at both rates: b 1+m c h w, b 1+2m c h w."""
        rows = rearrange(longer[:, 1:], "b (k n) c h w -> (b k h w) (n c)", n=2)
        wanted = rearrange(shorter[:, 1:], "b k c h w -> (b k h w) c")
        known = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
        solved = torch.linalg.lstsq(known.double().cpu(), wanted.double().cpu()).solution.T.float()
        return cls(solved[:, :-1], solved[:, -1])

    def measure(self, x: Tensor) -> Tensor:
        """b 1+2m c h w to b 1+m c h w."""
        told = torch.einsum("oi,bkihw->bkohw", self.matrix.to(x), paired(x))
        return torch.cat([x[:, :1], told + self.bias.to(x)[:, None, None]], dim=1)

    def __call__(self, step: int, x0: Tensor, y: Tensor) -> Tensor:
        back = (y - self.measure(x0))[:, 1:]
        change = torch.einsum("io,bkohw->bkihw", torch.linalg.pinv(self.matrix).to(x0), back)
        pairs = rearrange(paired(x0) + change, "b k (n c) h w -> b (k n) c h w", n=2)
        return torch.cat([y[:, :1], pairs], dim=1)


def paired(x: Tensor) -> Tensor:
    """The latents but the first, two by two: b 1+2m c h w to b m 2c h w."""
    return rearrange(x[:, 1:], "b (k n) c h w -> b k (n c) h w", n=2)
