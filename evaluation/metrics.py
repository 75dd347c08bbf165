"""Measures of videos, from their definitions, each with what it cannot see. Videos are uint8
f h w 3."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zerosmooth.extensions.predictions import lines


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, mean over frames; equal frames count 100 dB.

    It compares pixels: a correct shape that is slightly out of place counts as an error.
    """
    _same(a, b)
    error = ((a.double() - b.double()) / 255).square().flatten(1).mean(1)
    return (-10 * error.clamp(min=1e-10).log10()).mean().item()


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity (Wang et al. 2004), mean over windows, channels and frames; 1 for equal
    videos.

    Windows are Gaussians of deviation 1.5 on 11 x 11 pixels that lie inside the frame. Frames are
    compared one by one, so motion is not seen. ValueError if a frame is smaller than a window.
    """
    _same(a, b)
    if min(a.shape[1:3]) < 11:
        raise ValueError(f"frames of {a.shape[1]}x{a.shape[2]}; SSIM needs 11 pixels a side")
    at = torch.arange(11, dtype=torch.float64) - 5
    window = (-(at**2) / (2 * 1.5**2)).exp()
    window = (window / window.sum()).to(a.device)

    def local_mean(x: Tensor) -> Tensor:
        x = F.conv2d(x, window.view(1, 1, 11, 1))
        return F.conv2d(x, window.view(1, 1, 1, 11))

    x, y = (v.double().permute(0, 3, 1, 2).flatten(0, 1)[:, None] for v in (a, b))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * (2 * covariance + c2) / (var_x + var_y + c2)).mean().item()


def blend_psnr(frames: Tensor, n: int) -> float:
    """PSNR in dB of the inserted frames against a linear blend of the key frames around them. More
    is not better: a video that only fades between key frames scores highest. n: frames for each
    key frame."""
    blend = between(frames.float(), n).round().byte()
    inserted = torch.arange(len(blend)) % n > 0
    return psnr(frames[: len(blend)][inserted], blend[inserted])


def uneven(frames: Tensor, n: int) -> float:
    """How much the change from frame to frame depends on its place between two key frames: the
    deviation over the n places, of the mean over all key frames, relative to the mean of all.

    0 if frames change evenly, as they do in a mere fade too; sqrt(n - 1) if key frames are held. A
    camera that speeds up does not count, since every interval has all places. n: frames for each
    key frame. frames: f h w 3, up to the last key frame at least.
    """
    intervals = (len(frames) - 1) // n
    x = frames[: intervals * n + 1].float()
    change = (x[1:] - x[:-1]).abs().flatten(1).mean(1).view(intervals, n).mean(0).double()
    mean = change.mean()
    return (change.std(correction=0) / mean).item() if mean > 0 else 0.0


def between(x: Tensor, n: int) -> Tensor:
    """x with everything between every n-th entry and the next interpolated linearly, up to the last
    of these entries. x: f ..."""
    return lift(x[::n], n)


def lift(keys: Tensor, n: int) -> Tensor:
    """The n (k - 1) + 1 entries that lie linearly between keys. keys: k ..."""
    return lines(n, keys[None])[0][: (len(keys) - 1) * n + 1]


def gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased covariance of features, float64. features: n d with n of 2 or more."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features of shape {tuple(features.shape)}; n d with n >= 2 is needed")
    x = features.double()
    mean = x.mean(0)
    return mean, (x - mean).T @ (x - mean) / (len(x) - 1)


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)) of two Gaussians (Dowson &
    Landau 1982), in float64. With few samples it is biased upwards.

    (cov_a cov_b)^(1/2) has the trace of the symmetric (cov_a^(1/2) cov_b cov_a^(1/2))^(1/2), so
    eigendecompositions of two symmetric matrices suffice, even for singular covariances.
    """
    mean_a, cov_a, mean_b, cov_b = (x.double() for x in (mean_a, cov_a, mean_b, cov_b))
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, distance.item())


def inception_score(probabilities: Tensor) -> float:
    """exp of the mean divergence of each sample's class probabilities from the mean of all samples
    (Salimans et al. 2016): from 1 to the number of classes.

    probabilities: n classes; rows sum to 1. It sees neither motion nor whether samples are real.
    """
    p = probabilities.double()
    if p.ndim != 2 or not torch.allclose(p.sum(1), torch.ones(len(p)).double(), atol=1e-3):
        raise ValueError("probabilities must be n rows that sum to 1")
    marginal = p.mean(0, keepdim=True)
    divergence = (torch.special.xlogy(p, p) - torch.special.xlogy(p, marginal)).sum(1)
    return divergence.mean().exp().item()


def _same(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.dtype != torch.uint8 or b.dtype != torch.uint8 or a.ndim != 4:
        raise ValueError(f"videos of {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}; "
                         "both must be uint8 f h w 3")
