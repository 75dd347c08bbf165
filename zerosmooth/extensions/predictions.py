"""Corrections of predicted frames, not in the paper: the preset `anchored`, and late joining.

In every step a stage's predicted x0 becomes x0 + L (y - S x0), where y is what the stage before
predicts. The lift L is a right inverse of S, S L = I, so key frames are the base video's, bitwise;
unlike S†, which is one too, it also corrects the frames between.

A lift is a function (n, y, keys) -> all n*k frames, equal to y at key frames. y: b k .., what is
lifted; keys: b k .., the key frames as predicted, which may guide it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..cascade import Cascade, Hook, by_stage, sample_cascade
from ..operators import S, back_project
from ..samplers import Sampler

Lift = Callable[[int, Tensor, Tensor], Tensor]


def lines(n: int, y: Tensor, keys: Tensor | None = None) -> Tensor:
    """Lift by linear interpolation between key frames; constant after the last."""
    left = torch.arange(y.shape[1] * n, device=y.device).div(n, rounding_mode="floor")
    share = torch.arange(n, device=y.device).repeat(y.shape[1]) / n
    right = (left + 1).clamp(max=y.shape[1] - 1)
    return torch.lerp(y[:, left], y[:, right], share.to(y.dtype).view(-1, *[1] * (y.ndim - 2)))


def anchored(scales: Sequence[int], lift: Lift) -> Hook:
    """The hook that corrects each stage's predicted x0 by that of the stage before."""

    def hook(step: int, x0s: list[Tensor]) -> list[Tensor]:
        x0s = list(x0s)
        for s, n in zip(range(1, len(x0s)), scales):
            x0, y = x0s[s], x0s[s - 1]
            x0_hat = x0 + lift(n, y - S(n).measure(x0), y)  # x0 + L (y - S x0)
            x0s[s] = back_project(x0_hat, y, S(n))  # y itself, without rounding
        return x0s

    return hook


def sample_late(network: Callable[..., Tensor], sampler: Sampler, cascade: Cascade,
                noise: Callable[[int], Tensor], bus: object, hook: Hook, *, first: int, lift: Lift,
                sample: Callable[..., list[Tensor]] = sample_cascade) -> list[Tensor]:
    """Sample as `sample` does, but longer videos join at step `first`, from predicted key frames.

    Until then stage 0 runs alone, as the plain network. The others begin as lifts of its last
    predicted x0, with their own noise added at the level of that step.
    """
    x0s: list[Tensor] = []

    def watch(step: int, predicted: list[Tensor]) -> list[Tensor]:
        x0s[:] = hook(step, predicted)
        return x0s

    def key_noise(step: int) -> Tensor:
        return by_stage(noise(step), cascade.scales)[0]

    alone = Cascade(cascade.key_frames, ())
    xs = sample_cascade(network, sampler, alone, key_noise, None, watch, steps=range(first))
    x0 = x0s[0]
    for n, e in zip(cascade.scales, by_stage(noise(-1), cascade.scales)[1:]):
        x0 = lift(n, x0, x0)
        xs.append(back_project(sampler.noised(first, x0, e), xs[-1], S(n)))
    rest = range(first, len(sampler))
    return sample(network, sampler, cascade, noise, bus, hook, xs=xs, steps=rest)
