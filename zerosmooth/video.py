"""Reads and writes videos (mp4 and GIF), and draws a picture that compares the stages of one."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from einops import rearrange
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image, ImageDraw, ImageFont, ImageSequence
from PIL.PngImagePlugin import PngInfo

from .fields import UserError
from .files import FULL, one_line, scratch, whole
from .images import by_number, find_images, read_image

SHOWN = 256  # pixels: smaller videos are enlarged, or mp4's coarse colours would blur them
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
# The same frames give the same bytes: x264's result depends on the number of threads and, now and
# then, on its code for some CPUs (AVX-512).
EXACT = ("-threads", "1", "-x264-params", "cpu-independent=1")
CODEC = (*"-an -vcodec libx264 -pix_fmt yuv420p -crf 16 -movflags +faststart".split(), *EXACT)
# Players take BT.601 for small videos and BT.709 for large ones, unless a video says what it is.
BT709 = ("-vf", "scale=ceil(iw/2)*2:ceil(ih/2)*2:out_color_matrix=bt709:out_range=tv,"
                "setparams=color_primaries=bt709:color_trc=bt709", "-colorspace", "bt709",
         "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv")
KEY = "Comment"  # PNG's name for the text beside the frames, which mp4 and GIF call comment
XFSZ = getattr(signal, "SIGXFSZ", 25)  # the signal of a file beyond `ulimit -f`
INK, PAPER = (40, 40, 40), (255, 255, 255)


def as_comment(record: dict[str, Any]) -> str:
    """A record as one line of valid Unicode: half a surrogate pair stays JSON's escape."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def png_text(comment: str) -> PngInfo | None:
    """A comment as Pillow writes it into a PNG; None for an empty one."""
    info = PngInfo()
    info.add_text(KEY, comment)
    return info if comment else None


def write_video(path: str | Path, frames: np.ndarray, fps: float, comment: str = "") -> None:
    """Write frames (uint8, f h w 3) to an .mp4 (H.264, yuv420p), a .gif or a .webp, with a comment,
    which a .webp has not.

    The file is whole or not there: it is read back before it gets its name. OSError, which says
    why, if it cannot be written; UserError for another name or a rate that it cannot play;
    ValueError for what is no video.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(f"frames of {frames.dtype} {frames.shape}; uint8 f h w 3 is needed")
    path = Path(path)
    if path.suffix not in (".mp4", ".gif", ".webp"):
        raise UserError(f"{path} is to be a video; name it .mp4, .gif or .webp")
    if not 0.001 <= fps <= 100_000:
        raise UserError(f"a video of {fps} frames a second; use 0.001 to 100000")
    if fps > 50 and path.suffix == ".gif":  # whose shorter frames are shown for much longer
        raise UserError(f"GIF plays at most 50 frames a second, not {fps:g}; use .mp4 or .webp")
    with whole(path) as part:
        _write_video(part, frames, fps, path, comment)


def write_picture(path: str | Path, image: np.ndarray, comment: str = "") -> None:
    """Write an image (uint8, h w 3) to a .png. As `write_video`."""
    path = Path(path)
    with whole(path) as part:
        Image.fromarray(image).save(part, "PNG", pnginfo=png_text(comment))
        with Image.open(part) as written:
            if not np.array_equal(np.asarray(written), image):
                raise OSError(f"{path} cannot be written: it reads back as something else; is its "
                              "disk sound?")


def check_writer(folder: Path, suffix: str) -> None:
    """Write a tiny video to a folder and remove it: OSError, before long work, if that fails."""
    path = folder / f"try{suffix}"
    with scratch(path) as part:
        _write_video(part, np.zeros((2, 64, 64, 3), np.uint8), 8, path)


def _write_video(part: Path, frames: np.ndarray, fps: float, path: Path, comment: str = "") -> None:
    """Write a video to `part`, which will be `path`, and check that all of it can be read back."""
    frames = _enlarged(frames, enlargement(frames))
    wanted, unit = len(frames), "frames"
    if path.suffix in (".gif", ".webp"):
        # GIF counts in hundredths of a second, WebP in thousandths: frames are rounded, their sum
        # is not.
        parts = 100 if path.suffix == ".gif" else 1000
        ends = [1000 // parts * round(parts * i / fps) for i in range(wanted + 1)]
        durations = [end - start for start, end in zip(ends, ends[1:])]
        own = {"comment": comment.encode()} if path.suffix == ".gif" else {"lossless": True}
        iio.imwrite(part, frames, duration=durations, loop=0, **own)
        with Image.open(part) as file:  # in which equal frames are one
            found = sum(_duration(frame) for frame in ImageSequence.Iterator(file))
        wanted, unit = ends[-1], "ms"
    else:
        _run_ffmpeg(part, frames, fps, path, comment)
        try:
            found = len(read_video(part))
        except ValueError:
            found = 0
    if found != wanted:
        raise OSError(f"{path} cannot be written: only {found} of {wanted} {unit} can be read "
                      "back; is its disk sound, or full?")


def _duration(frame: Image.Image) -> int:
    """Milliseconds, which a WebP tells only once its frame is read."""
    frame.load()
    return frame.info.get("duration", 0)


def _run_ffmpeg(part: Path, frames: np.ndarray, fps: float, path: Path, comment: str) -> None:
    """OSError, which names `path` and the reason, unless ffmpeg wrote all frames to `part`."""
    height, width = frames.shape[1:3]
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}",
              "-r", str(Fraction(fps).limit_denominator(65535)), "-i", "-"]
    told = ["-metadata", f"comment={comment}"] if comment else []
    try:
        command = [get_ffmpeg_exe(), "-y", "-v", "error", *source, *CODEC, *BT709, *told]
        done = subprocess.run([*command, str(part)], input=np.ascontiguousarray(frames).data,
                              capture_output=True, start_new_session=True)
    except (RuntimeError, OSError) as error:
        raise OSError(f"{path} cannot be written: no ffmpeg can be run ({one_line(error)}); pip "
                      "install 'imageio[ffmpeg]', or write GIF (--gif)") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip() or f"status {done.returncode}"
        reason = next((text for number, text in FULL.items() if os.strerror(number) in said),
                      f"ffmpeg ended with {said.splitlines()[-1][:200]}")
        if done.returncode in (-XFSZ, 128 + XFSZ):  # the latter from a shell around it
            reason = FULL[errno.EFBIG]
        raise OSError(f"{path} cannot be written: {reason}")


def enlargement(frames: np.ndarray) -> int:
    """The whole factor by which `write_video` enlarges frames: 1 from SHOWN pixels on."""
    return max(1, ceil(SHOWN / max(frames.shape[1:3])))


def _enlarged(frames: np.ndarray, times: int) -> np.ndarray:
    return frames.repeat(times, axis=1).repeat(times, axis=2)


def find_videos(folder: Path) -> list[Path]:
    """All videos under a folder, by name, v2 before v10: video files, and folders of frames.
    UserError if there are none."""
    if not folder.is_dir():
        raise UserError(f"the folder of videos {folder} does not exist")
    inside = [(p, p.suffix.lower()) for p in folder.rglob("*") if not p.name.startswith(".")]
    found = {p for p, suffix in inside if suffix in VIDEO_SUFFIXES}
    frames = {p.parent for p, suffix in inside if suffix in (".png", ".jpg", ".jpeg")}
    found |= frames - {folder, *(p.parent for p in found)}  # pictures beside videos are no frames
    if not found:
        raise UserError(f"the folder {folder} has no videos ({', '.join(VIDEO_SUFFIXES)}, or "
                        "folders of frames)")
    return sorted(found, key=by_number)


def read_video(path: str | Path, frames: int | None = None) -> np.ndarray:
    """uint8 f h w 3 of a video file, or of a folder of images by name. UserError if unreadable.

    frames: how many a GIF is to give; None: as many as it holds, which has equal ones only once.
    """
    path = Path(path)
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
    except Exception as error:  # plugins raise anything
        raise UserError(f"the video {path} cannot be read ({one_line(error)})") from error


def _titled(x: np.ndarray, title: str, width: int = 0) -> np.ndarray:
    """Frames f h w 3 below a line of text, on paper that is at least `width` wide."""
    f, h, w, _ = x.shape
    line = Image.new("RGB", (max(w, width), 22), PAPER)
    ImageDraw.Draw(line).text((4, 3), title, INK, ImageFont.load_default(size=13))
    canvas = np.full((f, 22 + h, line.width, 3), PAPER, np.uint8)
    canvas[:, :22] = np.asarray(line)
    canvas[:, 22:, :w] = x
    return canvas


def _row(panels: Sequence[np.ndarray], gap: int) -> np.ndarray:
    """Panels f h w 3 in a row, with a gap behind each."""
    return np.concatenate([np.pad(x, ((0, 0), (0, 4), (0, gap), (0, 0)), constant_values=255)
                           for x in panels], axis=2)


def picture(stages: list[np.ndarray], fps: list[float]) -> np.ndarray:
    """One picture of a result: h w 3. stages: uint8 f h w 3, each a multiple of the first's frames.

    Above, a row a stage of the same stretch of time, four key frames long, aligned in time. Below,
    one line of pixels of each stage over its whole time: motion is a slanted edge, a jerk a step.
    """
    densest, keys = stages[-1], len(stages[0])
    columns = min(len(densest), 4 * len(densest) // keys)
    start = max(0, keys - 4) // 2 * (len(densest) // keys)
    size = max(40, min(96, 1536 // columns)) / max(densest.shape[1:3])
    height, width = (max(1, round(size * side)) for side in densest.shape[1:3])
    total = max(480, columns * (width + 4))
    rows = []
    for x, rate in zip(stages, fps):
        stride = len(densest) // len(x)
        shown = x[start // stride : (start + columns - 1) // stride + 1]
        small = [_resized(frame, width, height, Image.Resampling.LANCZOS) for frame in shown]
        first = start // stride
        title = f"{len(x)} frames, {rate:g} fps: frames {first} to {first + len(shown) - 1}"
        rows.append(_titled(_row(small, 4 + (stride - 1) * (width + 4)), title, total))
    axis, line = busiest_line(densest)
    where = f"column {line} (its top" if axis == 2 else f"row {line} (its left end"
    side = (total - 16 * len(stages)) // len(stages)
    slices = [_titled(_resized(line_over_time(x, axis, line), side, max(160, min(320, side)),
                               Image.Resampling.NEAREST), f"{len(x)} frames") for x in stages]
    title = f"pixel {where} above) of every frame, over the whole videos; time goes right"
    rows.append(_titled(_row(slices, 16), title, total))
    return np.concatenate([row[0] for row in rows])


def _resized(image: np.ndarray, width: int, height: int, how: Image.Resampling) -> np.ndarray:
    """As one frame: 1 h w 3."""
    return np.asarray(Image.fromarray(image).resize((width, height), how))[None]


def side_by_side(stages: list[np.ndarray], fps: list[float]) -> np.ndarray:
    """The key frames, each held as long as it lasts, beside the densest video, with titles.

    stages, fps: as in `picture`. Returns f h w 3, to be played at the densest video's rate.
    """
    keys, densest = stages[0], stages[-1]
    held = keys.repeat(len(densest) // len(keys), axis=0)
    titles = [f"{len(stages[i])} frames, {fps[i]:g} fps" for i in (0, -1)]
    panels = [_enlarged(x, enlargement(keys)) for x in (held, densest)]
    return _row([_titled(x, title) for x, title in zip(panels, titles)], 8)


def line_over_time(frames: np.ndarray, axis: int, line: int) -> np.ndarray:
    """A slice through a video: one line of pixels, time going right. axis: 1 for row `line`, 2 for
    column `line`."""
    pixels = frames[:, :, line] if axis == 2 else frames[:, line]
    return np.ascontiguousarray(rearrange(pixels, "f x c -> x f c"))


def busiest_line(frames: np.ndarray, axes: Sequence[int] = (1, 2)) -> tuple[int, int]:
    """Axis (1: a row, 2: a column; one of `axes`) and index of the line of pixels that changes most
    over time."""
    change = frames.astype(np.float32).mean(-1).std(0)  # h w
    lines = {1: change.mean(1), 2: change.mean(0)}
    axis = max(axes, key=lambda axis: lines[axis].max())
    return axis, int(lines[axis].argmax())
