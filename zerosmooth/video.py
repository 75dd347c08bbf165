"""Writes videos: mp4 or GIF, and a picture for people who rather look."""

from __future__ import annotations

import os
import tempfile
from math import ceil
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont  # imageio brings Pillow

from .images import find_images, read_image

SHOWN = 256  # pixels: smaller videos are enlarged by a whole factor, or mp4's coarse colours would smear them
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
INK, PAPER = (40, 40, 40), (255, 255, 255)


def write_video(path: Path, frames: np.ndarray, fps: float) -> None:
    """Write frames (uint8, f h w 3) to an .mp4 (H.264, yuv420p) or a .gif. The file is whole or not there."""
    times = enlargement(frames)
    frames = frames.repeat(times, axis=1).repeat(times, axis=2)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        if path.suffix == ".gif":
            iio.imwrite(part, frames, duration=_gif_durations(len(frames), fps), loop=0)
        else:
            iio.imwrite(
                part,
                frames,
                fps=fps,
                codec="libx264",
                pixelformat="yuv420p",
                macro_block_size=2,
                output_params=["-crf", "16", "-movflags", "+faststart"],
                ffmpeg_log_level="error",
            )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


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


def read_video(path: Path) -> np.ndarray:
    """uint8 f h w 3 of a video file, or of a folder of frames in the order of their names. ValueError if unreadable."""
    try:
        if path.is_dir():
            return np.stack([read_image(frame).numpy() for frame in find_images(path)])
        frames = iio.imread(path, plugin="pillow" if path.suffix.lower() == ".gif" else "FFMPEG")
    except Exception as error:  # whatever the plugin raises
        raise ValueError(f"the video {path} cannot be read ({error})") from error
    return np.asarray(frames)[..., :3]


def check_writer(folder: Path, suffix: str) -> None:
    """Write a tiny video to `folder`, to be told before long work that it cannot be done. OSError if so."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / f"try{suffix}"
        try:
            write_video(path, np.zeros((2, 64, 64, 3), np.uint8), 8)
            if path.stat().st_size == 0:
                raise OSError("it came out empty")
        except Exception as error:  # whatever the plugin raises, the user needs one sentence
            raise OSError(
                f"{suffix} cannot be written to {folder} ({type(error).__name__}: {error}); "
                "install imageio's ffmpeg extra (pip install 'imageio[ffmpeg]') or try --gif"
            ) from error


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


def line_over_time(frames: np.ndarray, axis: int, line: int) -> np.ndarray:
    """An x-t slice: one line of pixels, time going right. axis: 1 for row `line`, 2 for column `line`."""
    pixels = frames[:, :, line] if axis == 2 else frames[:, line]
    return np.ascontiguousarray(rearrange(pixels, "f x c -> x f c"))


def busiest_line(frames: np.ndarray) -> tuple[int, int]:
    """The axis (1: a row, 2: a column) and index of the line of pixels that changes most along itself over time."""
    change = frames.astype(np.float32).mean(-1).std(0)  # h w
    rows, columns = change.mean(1), change.mean(0)
    return (1, int(rows.argmax())) if rows.max() >= columns.max() else (2, int(columns.argmax()))
