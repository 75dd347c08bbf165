"""Measures of videos, from their definitions. Videos are uint8 f h w 3; what a measure cannot see is said with it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zerosmooth.operators import Interpolated


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio, mean over frames, in dB; a frame that is equal counts 100 dB.

    a, b: uint8 f h w 3. It sees pixels: a shape that is right but a little beside its place counts as an error.
    """
    _same(a, b)
    error = ((a.double() - b.double()) / 255).square().flatten(1).mean(1)
    return (-10 * error.clamp(min=1e-10).log10()).mean().item()


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity (Wang et al. 2004), mean over windows, channels and frames; 1 for equal videos.

    a, b: uint8 f h w 3. Windows are Gaussians of deviation 1.5 on 11 x 11 pixels, those that lie inside the frame.
    It compares frame by frame and knows nothing of motion. ValueError if a frame is smaller than a window.
    """
    _same(a, b)
    if min(a.shape[1:3]) < 11:
        raise ValueError(f"frames of {a.shape[1]}x{a.shape[2]}; at least 11 pixels a side are needed")
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
    """PSNR of the inserted frames against a linear blend of the key frames around them, in dB; a video that only fades
    from key frame to key frame scores high, so more is not better. frames: uint8 f h w 3."""
    blend = between(frames.float(), n).round().byte()
    inserted = torch.arange(len(blend)) % n > 0
    return psnr(frames[: len(blend)][inserted], blend[inserted])


def between(x: Tensor, n: int) -> Tensor:
    """Of x, f ..., what lies linearly between every n-th and the next, up to the last of these."""
    return lift(x[::n], n)


def lift(keys: Tensor, n: int) -> Tensor:
    """Of keys, k ..., the n (k - 1) + 1 that lie linearly from the first to the last, n from each to the next."""
    return Interpolated(n).lift(keys[None])[0][: (len(keys) - 1) * n + 1]


def gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased covariance of features, float64. features: n d with n of 2 or more."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features of shape {tuple(features.shape)}; two rows or more of numbers are needed")
    x = features.double()
    mean = x.mean(0)
    return mean, (x - mean).T @ (x - mean) / (len(x) - 1)


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)) of two Gaussians (Dowson & Landau 1982).

    In float64. (cov_a cov_b)^(1/2) has the trace of the symmetric (cov_a^(1/2) cov_b cov_a^(1/2))^(1/2), so that two
    symmetric eigendecompositions do, singular covariances included. With few samples it is biased upwards.
    """
    mean_a, cov_a, mean_b, cov_b = (x.double() for x in (mean_a, cov_a, mean_b, cov_b))
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, distance.item())


def inception_score(probabilities: Tensor) -> float:
    """exp of the mean divergence of each sample's classes from all samples' (Salimans et al. 2016): 1 to n classes.

    probabilities: n classes, rows that sum to 1. It sees neither whether samples are true nor whether they move.
    """
    p = probabilities.double()
    if p.ndim != 2 or not torch.allclose(p.sum(1), torch.ones(len(p)).double(), atol=1e-3):
        raise ValueError("probabilities must be n rows that sum to 1")
    marginal = p.mean(0, keepdim=True)
    divergence = (torch.special.xlogy(p, p) - torch.special.xlogy(p, marginal)).sum(1)
    return divergence.mean().exp().item()


def _same(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.dtype != torch.uint8 or b.dtype != torch.uint8 or a.ndim != 4:
        raise ValueError(
            f"videos of {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}; both must be uint8 f h w 3"
        )
