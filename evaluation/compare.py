"""Videos from files, made by anything: how well denser ones keep the frames of others, and the
features of real ones, with which FVD compares."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from zerosmooth.fields import UserError
from zerosmooth.files import remove_left
from zerosmooth.images import by_number
from zerosmooth.video import find_videos
from zerosmooth_cli.results import write_tensors

from .detectors import Detector
from .jobs import whole_tensors
from .metrics import blend_psnr, psnr, ssim, uneven
from .tables import FEWEST, MEASURES, mean_and_error, show, statistic, table, worst
from .videos import read_timed


def compare(a: str, b: str, detectors: Mapping[str, Detector],
            real: RealVideos | None = None) -> str:
    """A table of measures of videos b against videos a. a, b: folders of videos, or patterns. real:
    the videos with which FVD compares both.

    They pair as `paired` says. b may have n frames for one of a, or n - 1 between two of a, as
    interpolators make them: frame n*i of b is compared with frame i of a. UserError if they do not
    pair.
    """
    pairs, how = paired(a, b)
    if detectors and len(pairs) < FEWEST:
        raise UserError(f"FVD and IS need {FEWEST} pairs or more, not {len(pairs)}; leave the "
                        "detectors out")
    if real is not None:
        real.measure()
    values: dict[str, list[float]] = {"PSNR": [], "SSIM": [], "blend": [], "uneven": []}
    features: dict[tuple[str, str], list[Tensor]] = {}
    for one, other in tqdm(pairs, unit="pair", leave=False):
        x, y = read_timed(one), read_timed(other)
        n = _scale(one, other, x, y)
        values["PSNR"].append(psnr(y[::n], x))
        values["SSIM"].append(ssim(y[::n], x))
        if n > 1:
            values["blend"].append(blend_psnr(y, n))
            values["uneven"].append(uneven(y, n))
        for name, detector in detectors.items():
            for side, frames in (("A", x), ("B", y)):
                features.setdefault((name, side), []).append(detector(frames))
    rows = [[m, show(mean_and_error(v), MEASURES[m][0]), show(worst(m, v), MEASURES[m][0]),
             MEASURES[m][1]] for m, v in values.items() if v]
    compared = None if real is None else real.features()
    for (name, side), rows_of in features.items():
        value = statistic(name, torch.stack(rows_of), compared)
        rows.append([f"{name} of {side}", show(value, 2), "-", detectors[name].protocol])
    head = ["measure", "mean ± standard error", "worst twentieth", "what it is"]
    (one, other), (last, end) = pairs[0], pairs[-1]
    return (f"{len(pairs)} pairs {how}, from {one.name} and {other.name} to {last.name} and "
            f"{end.name}\n\n" + table(head, rows))


def paired(a: str, b: str) -> tuple[list[tuple[Path, Path]], str]:
    """Videos of a and b that belong together, and by what they do. UserError, which names it, for a
    video without another."""
    first, second = _videos(a), _videos(b)
    left, right = _by_name(first), _by_name(second)
    if left.keys() & right.keys():
        for where, side, other in ((a, left, right), (b, right, left)):
            if alone := [path for name, path in side.items() if name not in other]:
                more = f" and {len(alone) - 1} more" if alone[1:] else ""
                raise UserError(f"{alone[0].name}{more} of {where} has no video of its name among "
                                "the others; add it there, or leave it out here")
        return [(path, right[name]) for name, path in left.items()], "by name"
    if len(first) != len(second):
        raise UserError(f"{a} has {len(first)} videos and {b} {len(second)}, and no names agree; "
                        "they are compared in pairs")
    return list(zip(first, second)), "in the order of their names"


def _by_name(videos: Sequence[Path]) -> dict[str, Path]:
    """Videos by their name within the folder of all, without its ending and the number of frames,
    if that leaves every video its own."""
    folder = os.path.commonpath([path.parent.absolute() for path in videos])
    whole = {path.absolute().relative_to(folder).as_posix(): path for path in videos}
    short = {re.sub(r"(_\d+f)?(\.\w+)?$", "", name): path for name, path in whole.items()}
    return short if len(short) == len(videos) else whole


def _videos(where: str) -> list[Path]:
    if Path(where).is_dir():
        return find_videos(Path(where))
    found = sorted(map(Path, glob.glob(where)), key=by_number)
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
                write_tensors(file, {"FVD": self.detector(read_timed(path))})

    def features(self) -> Tensor:
        """n d, once all are measured."""
        return torch.stack([load_file(self._file(path))["FVD"] for path in self.videos])

    def _file(self, path: Path) -> Path:
        facts = path.stat()  # a video that was replaced is measured again
        which = f"{path.resolve()}, {facts.st_size}, {facts.st_mtime_ns}, {self.detector.protocol}"
        return self.into / f"{path.stem}-{hashlib.sha256(which.encode()).hexdigest()[:16]}.features"
