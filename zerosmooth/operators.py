"""Measurement operators S, A1, A2 and back-projection (paper Eq. 5-8).

An operator M measures k key frames of a video of f = n*k frames. Row i averages a group of frames;
the groups are disjoint, so the pseudo-inverse M† (Moore-Penrose) needs no linear algebra: it copies
key frame i to every frame of group i, and is zero in the frames of no group.

    n = 2      S                A1                   A2
    row 0      1 . . . . .      .5 .5  .  .  .  .     1  .  .  .  .  .
    row 1      . . 1 . . .       .  . .5 .5  .  .     . .5 .5  .  .  .
    row 2      . . . . 1 .       .  .  .  . .5 .5     .  .  . .5 .5  .   (A2 misses the last)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Operator:
    """A linear measurement of frames; the frame axis is 1, any axes may follow."""

    n: int  # frames from one key frame to the next

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n={self.n} frames between key frames; it must be at least 1")

    def measure(self, x: Tensor) -> Tensor:
        """M x. x: b f ..., returns b k ... with k = f / n. ValueError if n does not divide f."""
        raise NotImplementedError

    def lift(self, y: Tensor) -> Tensor:
        """M† y. y: b k ..., returns b f ... with f = n*k."""
        raise NotImplementedError

    def replace(self, x: Tensor, y: Tensor) -> Tensor:
        """(I - M†M) x + M† y (Eq. 5, 6): `back_project` without its check of the shapes."""
        x_hat = x - self.lift(self.measure(x))  # (I - M†M) x
        return x_hat.add_(self.lift(y))  # + M† y

    def matrix(self, f: int) -> Tensor:
        """M itself, k x f, by measuring the identity: for tests and pictures."""
        return self.measure(torch.eye(f)[None])[0]

    def _key_frames(self, x: Tensor) -> int:
        if x.shape[1] % self.n:
            raise ValueError(f"{x.shape[1]} frames are not a multiple of n={self.n}")
        return x.shape[1] // self.n


class S(Operator):
    """Sampling: key frame i is frame n*i (Eq. 7; the paper calls it A)."""

    def measure(self, x: Tensor) -> Tensor:
        self._key_frames(x)
        return x[:, :: self.n]

    def lift(self, y: Tensor) -> Tensor:
        x = y.new_zeros(y.shape[0], y.shape[1] * self.n, *y.shape[2:])
        x[:, :: self.n] = y
        return x

    def replace(self, x: Tensor, y: Tensor) -> Tensor:
        x_hat = x.clone()  # S†S is diagonal: 1 at key frames, 0 elsewhere
        x_hat[:, :: self.n] = y
        return x_hat


class A1(Operator):
    """Averaging forward: key frame i is the mean of frames n*i .. n*i+n-1 (Eq. 8)."""

    def measure(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self._key_frames(x), self.n)).mean(2)

    def lift(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.n, dim=1)


class A2(Operator):
    """Averaging backward: key frame i is the mean of frames n*i-n+1 .. n*i; key frame 0 is frame 0
    (Eq. 8)."""

    def measure(self, x: Tensor) -> Tensor:
        k = self._key_frames(x)
        groups = x[:, 1 : x.shape[1] - self.n + 1].reshape(x.shape[0], k - 1, self.n, *x.shape[2:])
        return torch.cat([x[:, :1], groups.mean(2)], dim=1)

    def lift(self, y: Tensor) -> Tensor:
        unobserved = y.new_zeros(y.shape[0], self.n - 1, *y.shape[2:])
        return torch.cat([y[:, :1], y[:, 1:].repeat_interleave(self.n, dim=1), unobserved], dim=1)


def back_project(x: Tensor, y: Tensor, M: Operator) -> Tensor:
    """x^ = (I - M†M) x + M† y: x with what M measures of it replaced by y, so M x^ = y (Eq. 5, 6).

    x: b f ..., y: b k ...; returns b f ... ValueError if f is not n*k.
    """
    if x.shape[1] != M.n * y.shape[1]:
        raise ValueError(f"{x.shape[1]} frames cannot take {y.shape[1]} key frames at n={M.n}")
    return M.replace(x, y)
