"""Videos of files, at one rate: each frame as often as its time stamps say."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import torch
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image, ImageSequence
from torch import Tensor

from zerosmooth.fields import UserError
from zerosmooth.files import one_line
from zerosmooth.video import read_video

STAMP = re.compile(r"\[Parsed_showinfo.*\] n: *\d+ pts: *(-?\d+) .* s:(\d+)x(\d+) ")
BASE = re.compile(r"\[Parsed_showinfo.*\] config in time_base: (\d+)/(\d+)")
WIDE = re.compile(r"color_trc:(smpte2084|arib-std-b67)|color_primaries:(bt2020|smpte43[12])")
GIF, OTHER = 0.0051, 0.0006  # seconds: how far a time stamp may be from the true time
HELD = 4  # frames that one stands for, in the mean, at most


def read_timed(path: Path) -> Tensor:
    """uint8 f h w 3 of a video file, or of a folder of images by name. UserError if it cannot be
    read, or its frames are at no one rate.

    A frame that stands for several, as GIFs have equal ones, is repeated.
    """
    if path.is_dir():
        return torch.from_numpy(read_video(path))
    try:
        frames, times, off = _gif(path) if path.suffix.lower() == ".gif" else _others(path)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"the video {path} cannot be read ({one_line(error)})") from error
    counts = repeats(times, off)
    if counts is None:
        gaps = np.diff(times)
        raise UserError(f"{path} has no one rate: its frames are {gaps.min():.3f} to "
                        f"{gaps.max():.3f} s apart; bring it to one first (ffmpeg -r 24)")
    return torch.from_numpy(frames.repeat(counts, 0))


def repeats(times: np.ndarray, off: float) -> np.ndarray | None:
    """How often each frame is to be shown at the lowest one rate that explains the time stamps;
    None if there is none.

    times: in seconds, of the frames and of the end. off: how far each may be from the true time.
    """
    t = times - times[0]
    least, most = len(t) - 1, min(HELD * (len(t) - 1), int(t[-1] / (2.5 * off)))
    for n in range(least, max(least, most) + 1):
        for end in (t[-1] - off, t[-1], t[-1] + off):  # of which the rate is a guess
            at = np.rint(t / end * n)
            counts = np.diff(at).astype(int)
            if counts.min() < 1:
                continue
            low, high = (t[1:] - off) / at[1:], (t[1:] + off) / at[1:]  # that a frame may take
            if low.max() <= high.min():
                return counts
    return None


def _gif(path: Path) -> tuple[np.ndarray, np.ndarray, float]:
    frames, times = [], [0.0]
    with Image.open(path) as image:
        for still in ImageSequence.Iterator(image):
            frames.append(np.asarray(still.convert("RGB")))
            times.append(times[-1] + max(still.info.get("duration", 0), 10) / 1000)
    return np.stack(frames), np.array(times), GIF


def _others(path: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """Frames as they are stored, none repeated or dropped."""
    for keep in (("-fps_mode", "passthrough"), ("-vsync", "0")):  # as ffmpeg 5.1 spells it, and 4
        command = [get_ffmpeg_exe(), "-nostdin", "-hide_banner", "-i", str(path), "-an", "-vf",
                   "showinfo", *keep, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
        done = subprocess.run(command, capture_output=True)
        said = done.stderr.decode(errors="replace")
        if "fps_mode" not in said:  # it knows the option
            break
    stamps, base = STAMP.findall(said), BASE.search(said)
    if done.returncode or not stamps or base is None:
        lines = [line for line in said.splitlines() if line.strip()] or ["it has no frames"]
        raise ValueError(lines[-1][:200])
    if wide := WIDE.search(said):  # a matrix is converted as tagged, primaries and transfer are not
        raise ValueError(f"its colours, {wide[0]}, are not BT.709's; convert it first")
    times = np.array([int(pts) for pts, *_ in stamps]) * int(base[1]) / int(base[2])
    width, height = map(int, stamps[0][1:])
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)
    if len(frames) != len(times):
        raise ValueError(f"{len(times)} frames are decoded as {len(frames)}")
    last = np.diff(times).min() if len(times) > 1 else 1.0  # how long is not known
    return frames, np.append(times, times[-1] + last), OTHER
