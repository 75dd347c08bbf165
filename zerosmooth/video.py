"""Writes videos: mp4 or GIF, and a picture for people who rather look."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Sequence
from fractions import Fraction
from math import ceil
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from einops import rearrange
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image, ImageDraw, ImageFont, ImageSequence

from .comments import png_text
from .files import FULL, one_line, scratch, whole
from .images import find_images, read_image

SHOWN = 256  # pixels: smaller videos are enlarged by a whole factor, or mp4's coarse colours would smear them
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
# The same frames are the same bytes: with several threads x264 finds other ones on other numbers of cores, and its fast
# code for some CPUs (AVX-512) finds other ones now and then on the same machine.
EXACT = ("-threads", "1", "-x264-params", "cpu-independent=1")
INK, PAPER = (40, 40, 40), (255, 255, 255)


def write_video(path: Path, frames: np.ndarray, fps: float, comment: str = "") -> None:
    """Write frames (uint8, f h w 3) to an .mp4 (H.264, yuv420p) or a .gif, with a comment (see `comments`).

    The file is whole or not there: it is read back before it gets its name. OSError, which says why, if it cannot be
    written; ValueError for what is no video.
    """
    _check_frames(frames, fps)
    with whole(path) as part:
        _write_video(part, frames, fps, path, comment)


def write_picture(path: Path, image: np.ndarray, comment: str = "") -> None:
    """Write an image (uint8, h w 3) to a .png. As `write_video`."""
    with whole(path) as part:
        Image.fromarray(image).save(part, "PNG", pnginfo=png_text(comment))
        with Image.open(part) as written:
            if not np.array_equal(np.asarray(written), image):
                raise OSError(f"{path} cannot be written: it reads back as something else; is its disk sound?")


def check_writer(folder: Path, suffix: str) -> None:
    """Write a tiny video to `folder`, to be told before long work that it cannot be done. OSError if so."""
    path = folder / f"try{suffix}"
    with scratch(path) as part:
        _write_video(part, np.zeros((2, 64, 64, 3), np.uint8), 8, path)


def _check_frames(frames: np.ndarray, fps: float) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or frames.size == 0:
        raise ValueError(f"frames of {frames.dtype} {frames.shape}; uint8 frames height width 3 is needed")
    if not 0.001 <= fps <= 100_000:
        raise ValueError(f"a video of {fps} frames a second; use 0.001 to 100000")


def _write_video(part: Path, frames: np.ndarray, fps: float, path: Path, comment: str = "") -> None:
    """Write to `part` what is to become `path`, and count what can be read back."""
    times = enlargement(frames)
    frames = frames.repeat(times, axis=1).repeat(times, axis=2)
    if path.suffix == ".gif":
        durations = _gif_durations(len(frames), fps)
        iio.imwrite(part, frames, duration=durations, loop=0, comment=comment.encode())
        with Image.open(part) as file:  # it holds frames that are alike as one
            found = sum(frame.info.get("duration", 0) for frame in ImageSequence.Iterator(file))
        lost = f"{found} of {sum(durations)} ms" if found != sum(durations) else None
    else:
        _run_ffmpeg(part, frames, fps, path, comment)
        try:
            found = len(read_video(part))
        except ValueError:
            found = 0
        lost = f"{found} of {len(frames)} frames" if found != len(frames) else None
    if lost:
        raise OSError(f"{path} cannot be written: only {lost} can be read back; is its disk sound, or full?")


def _run_ffmpeg(part: Path, frames: np.ndarray, fps: float, path: Path, comment: str) -> None:
    """OSError, which names `path` and the reason, unless ffmpeg says that it wrote all to `part`."""
    height, width = frames.shape[1:3]
    rate = Fraction(fps).limit_denominator(65535)
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(rate), "-i", "-"]
    codec = ["-an", "-vcodec", "libx264", "-pix_fmt", "yuv420p", "-crf", "16", "-movflags", "+faststart", *EXACT]
    tag = ["-metadata", f"comment={comment}"] if comment else []
    even = ["-vf", f"scale={width + width % 2}:{height + height % 2}"] if width % 2 or height % 2 else []
    try:
        command = [get_ffmpeg_exe(), "-y", "-v", "error", *source, *codec, *even, *tag, str(part)]
        pixels = np.ascontiguousarray(frames).reshape(-1).data
        done = subprocess.run(command, input=pixels, capture_output=True, start_new_session=True)
    except (RuntimeError, OSError) as error:
        hint = "pip install 'imageio[ffmpeg]', or write GIF (--gif)"
        raise OSError(f"{path} cannot be written: no ffmpeg can be run ({one_line(error)}); {hint}") from error
    if done.returncode == 0:
        return
    said = done.stderr.decode(errors="replace").strip()
    ended = -done.returncode if done.returncode < 0 else done.returncode - 128  # by a signal; by one in a shell
    reason = next((text for number, text in FULL.items() if os.strerror(number) in said), None)
    if ended == getattr(signal, "SIGXFSZ", None):
        reason = FULL[errno.EFBIG]
    last = said.splitlines()[-1][:200] if said else "without a word"
    status = f"signal {ended}" if 0 < ended < 65 else f"status {done.returncode}"
    raise OSError(f"{path} cannot be written: {reason or f'ffmpeg ended with {status}: {last}'}")


def _gif_durations(frames: int, fps: float) -> list[int]:
    """Milliseconds of each frame. GIF counts in hundredths of a second, so single frames are rounded, not their sum."""
    ends = [round(100 * (i + 1) / fps) for i in range(frames)]
    return [10 * (end - start) for start, end in zip([0, *ends], ends)]


def enlargement(frames: np.ndarray) -> int:
    """The whole factor by which `write_video` enlarges frames: 1 from SHOWN pixels on."""
    return max(1, ceil(SHOWN / max(frames.shape[1:3])))


def find_videos(folder: Path) -> list[Path]:
    """All videos under a folder, by name: video files, and folders that hold frames. ValueError if there are none."""
    if not folder.is_dir():
        raise ValueError(f"the folder of videos {folder} does not exist")
    files = [p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and not p.name.startswith(".")]
    frames = {p.parent for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg")}
    frames -= {folder, *(p.parent for p in files)}  # pictures beside videos are no video
    if not (found := sorted([*files, *frames])):
        raise ValueError(f"the folder {folder} has no videos ({', '.join(VIDEO_SUFFIXES)}, or folders of frames)")
    return found


def read_video(path: Path, frames: int | None = None) -> np.ndarray:
    """uint8 f h w 3 of a video file, or of a folder of frames in the order of their names. frames: how many a GIF
    shows, which holds those that are alike as one; else as many as it holds. ValueError if unreadable."""
    try:
        if path.is_dir():
            return np.stack([read_image(frame).numpy() for frame in find_images(path)])
        if path.suffix.lower() != ".gif":
            return np.asarray(iio.imread(path, plugin="FFMPEG"))[..., :3]
        held = np.asarray(iio.imread(path, plugin="pillow"))[..., :3]
        if frames is None:
            return held
        with Image.open(path) as image:
            ends = np.cumsum([still.info["duration"] for still in ImageSequence.Iterator(image)])
        return held[np.searchsorted(ends, (np.arange(frames) + 0.5) / frames * ends[-1])]
    except Exception as error:  # whatever the plugin raises
        raise ValueError(f"the video {path} cannot be read ({one_line(error)})") from error


def picture(stages: list[np.ndarray], fps: list[float]) -> np.ndarray:
    """One picture of a result: h w 3. stages: uint8 f h w 3, each a multiple of the frames of the first.

    Above, a stretch of time with a row a stage, frames aligned in time; below, a slice through each stage's whole
    video, one line of pixels over time, where motion is a slanted edge and a jerk is a step in it.
    """
    densest = stages[-1]
    columns = min(len(densest), 4 * len(densest) // len(stages[0]))  # four key frames
    start = (len(stages[0]) - 4) // 2 * (len(densest) // len(stages[0])) if len(stages[0]) > 4 else 0
    size = max(40, min(96, 1536 // columns))
    pad, label = 4, 22
    height, width = (max(1, round(size * s / max(densest.shape[1:3]))) for s in densest.shape[1:3])
    axis, line = busiest_line(densest)
    slice_width = (columns * (width + pad) - pad - (len(stages) - 1) * 4 * pad) // len(stages)
    slice_height = max(160, min(320, slice_width))
    total = (
        max(480, pad + columns * (width + pad)),
        len(stages) * (label + height + pad) + 2 * label + slice_height + pad,
    )
    canvas = Image.new("RGB", total, PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=13)
    y = 0
    for frames, rate in zip(stages, fps):
        stride = len(densest) // len(frames)
        first, last = start // stride, (start + columns - 1) // stride
        draw.text((pad, y + 3), f"{len(frames)} frames, {rate:g} fps: frames {first} to {last}", INK, font)
        y += label
        for column in range(0, columns, stride):
            frame = Image.fromarray(frames[(start + column) // stride]).resize(
                (width, height), Image.Resampling.LANCZOS
            )
            canvas.paste(frame, (pad + column * (width + pad), y))
        y += height + pad
    where = f"column {line} of every frame, its top" if axis == 2 else f"row {line} of every frame, its left end"
    draw.text((pad, y + 3), f"pixel {where} above; time goes right, whole videos", INK, font)
    y += label
    for i, frames in enumerate(stages):
        image = Image.fromarray(line_over_time(frames, axis, line))
        x = pad + i * (slice_width + 4 * pad)
        canvas.paste(image.resize((slice_width, slice_height), Image.Resampling.NEAREST), (x, y))
        draw.text((x, y + slice_height + 2), f"{len(frames)} frames", INK, font)
    return np.asarray(canvas)


def side_by_side(stages: list[np.ndarray], fps: list[float]) -> np.ndarray:
    """One video of a result, to be shared: the key frames, each held as long as it lasts, beside the densest video, a
    line above each that says what it is. stages, fps: as in `picture`. Returns f h w 3, at the rate of the densest."""
    pad, label = 8, 24
    times, panels = enlargement(stages[0]), [stages[0].repeat(len(stages[-1]) // len(stages[0]), axis=0), stages[-1]]
    f, height, width, _ = panels[0].shape
    height, width = times * height, times * width
    header = Image.new("RGB", (2 * width + pad, label), PAPER)
    draw, font = ImageDraw.Draw(header), ImageFont.load_default(size=14)
    for i, stage in enumerate((0, -1)):
        draw.text((i * (width + pad) + 4, 3), f"{len(stages[stage])} frames, {fps[stage]:g} fps", INK, font)
    canvas = np.full((f, label + height, 2 * width + pad, 3), PAPER, np.uint8)
    canvas[:, :label] = np.asarray(header)
    for i, x in enumerate(panels):
        left = i * (width + pad)
        canvas[:, label:, left : left + width] = x.repeat(times, axis=1).repeat(times, axis=2)
    return canvas


def line_over_time(frames: np.ndarray, axis: int, line: int) -> np.ndarray:
    """An x-t slice: one line of pixels, time going right. axis: 1 for row `line`, 2 for column `line`."""
    pixels = frames[:, :, line] if axis == 2 else frames[:, line]
    return np.ascontiguousarray(rearrange(pixels, "f x c -> x f c"))


def busiest_line(frames: np.ndarray, axes: Sequence[int] = (1, 2)) -> tuple[int, int]:
    """The axis (1: a row, 2: a column) and index of the line of pixels that changes most along itself over time. axes:
    those to choose from."""
    change = frames.astype(np.float32).mean(-1).std(0)  # h w
    lines = {1: change.mean(1), 2: change.mean(0)}
    axis = max(axes, key=lambda axis: lines[axis].max())
    return axis, int(lines[axis].argmax())
