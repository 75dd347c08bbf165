"""Videos from files, made by anything: how well denser ones keep the frames of others, and the
features of real ones, with which FVD compares."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from zerosmooth.fields import UserError
from zerosmooth.files import remove_left
from zerosmooth.video import find_videos, read_video
from zerosmooth_cli.results import write_tensors

from .detectors import Detector
from .jobs import whole_tensors
from .metrics import blend_psnr, psnr, ssim
from .tables import FEWEST, MEASURES, mean_and_error, show, statistic, table


def compare(a: str, b: str, detectors: Mapping[str, Detector], real: Tensor | None = None) -> str:
    """A table of measures of videos b against videos a. a, b: folders of videos, or patterns. real:
    n d, features of the videos with which FVD compares both.

    Videos pair in the order of their names. b may have n frames for one of a, or n - 1 between two
    of a, as interpolators make them: frame n*i of b is compared with frame i of a. UserError if
    they do not pair.
    """
    first, second = _videos(a), _videos(b)
    if len(first) != len(second):
        raise UserError(f"{a} has {len(first)} videos and {b} {len(second)}; they are compared in "
                        "pairs")
    values: dict[str, list[float]] = {"PSNR": [], "SSIM": [], "blend": []}
    features: dict[tuple[str, str], list[Tensor]] = {}
    for one, other in tqdm(list(zip(first, second)), unit="pair", leave=False):
        x, y = (torch.from_numpy(read_video(path)) for path in (one, other))
        n = _scale(one, other, x, y)
        values["PSNR"].append(psnr(y[::n], x))
        values["SSIM"].append(ssim(y[::n], x))
        if n > 1:
            values["blend"].append(blend_psnr(y, n))
        for name, detector in detectors.items():
            for side, frames in (("A", x), ("B", y)):
                features.setdefault((name, side), []).append(detector(frames))
    rows = [[m, show(mean_and_error(v), MEASURES[m][0]), MEASURES[m][1]]
            for m, v in values.items() if v]
    for (name, side), rows_of in features.items() if len(first) >= FEWEST else ():
        value = statistic(name, torch.stack(rows_of), real)
        rows.append([f"{name} of {side}", show(value, 2), detectors[name].protocol])
    head = ["measure", "mean ± standard error", "what it is"]
    return (f"{len(first)} pairs, the first {first[0].name} and {second[0].name}\n\n"
            + table(head, rows))


def _videos(where: str) -> list[Path]:
    if Path(where).is_dir():
        return find_videos(Path(where))
    found = sorted(Path(path) for path in glob.glob(where))
    if not found:
        raise UserError(f"there is no video at {where}")
    return found


def _scale(one: Path, other: Path, x: Tensor, y: Tensor) -> int:
    """n, such that every n-th frame of y stands for one of x."""
    if x.shape[1:] != y.shape[1:]:
        sizes = " and ".join(f"{v.shape[2]}x{v.shape[1]}" for v in (x, y))
        raise UserError(f"{one} and {other} have frames of {sizes}; bring them to one size first")
    if len(y) % len(x) == 0:
        return len(y) // len(x)
    n, rest = divmod(len(y) - 1, max(1, len(x) - 1))
    if n == 0 or rest:
        raise UserError(f"{other} has {len(y)} frames, which is neither n for each of the {len(x)} "
                        f"of {one} nor n - 1 between two")
    return n


class RealVideos:
    """The features of a folder's videos, kept in `into`, one file for each. UserError if there are
    fewer than two."""

    def __init__(self, folder: Path, into: Path, detector: Detector) -> None:
        self.folder, self.into, self.detector = folder, into, detector
        self.videos = find_videos(folder)
        if len(self.videos) < 2:
            raise UserError(f"{folder} has one video; FVD needs two real ones or more, better "
                            "hundreds")

    def measure(self, rank: int = 0, world: int = 1) -> None:
        """Write this process's share of the features that are not there yet."""
        self.into.mkdir(parents=True, exist_ok=True)
        remove_left(self.into.absolute())
        for path in tqdm(self.videos[rank::world], desc="real videos", disable=rank > 0):
            if not whole_tensors(file := self._file(path)):
                write_tensors(file, {"FVD": self.detector(torch.from_numpy(read_video(path)))})

    def features(self) -> Tensor:
        """n d, once all are measured."""
        return torch.stack([load_file(self._file(path))["FVD"] for path in self.videos])

    def _file(self, path: Path) -> Path:
        facts = path.stat()  # a video that was replaced is measured again
        which = f"{path.resolve()}, {facts.st_size}, {facts.st_mtime_ns}, {self.detector.protocol}"
        return self.into / f"{path.stem}-{hashlib.sha256(which.encode()).hexdigest()[:16]}.features"
