"""Videos say what their colours are, and players show these."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image

from evaluation.videos import read_timed
from zerosmooth.fields import UserError
from zerosmooth.video import read_video, write_video

from .chromium import PATH, Chromium

COLORS = ((230, 40, 30), (20, 200, 60), (40, 60, 220), (128, 128, 128))  # a quarter each
SIZES = {64: (64, 64), 67: (67, 131), 576: (576, 1024), 1024: (1024, 576)}  # by lines


def quarters(height: int, width: int, frames: int = 2) -> np.ndarray:
    """f h w 3."""
    x = np.empty((frames, height, width, 3), np.uint8)
    for i, color in enumerate(COLORS):
        rows, columns = ((slice(None, n // 2), slice(n // 2, None)) for n in (height, width))
        x[:, rows[i // 2], columns[i % 2]] = color
    return x


def middles(x: np.ndarray) -> np.ndarray:
    """Of the quarters of an image h w c."""
    height, width = x.shape[:2]
    return np.stack([x[height * (1 + 2 * (i // 2)) // 4, width * (1 + 2 * (i % 2)) // 4]
                     for i in range(4)]).astype(float)


def ffmpeg(*arguments, **options) -> subprocess.CompletedProcess:
    command = [get_ffmpeg_exe(), "-nostdin", "-hide_banner", "-y", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=True, **options)


@pytest.mark.parametrize("lines", SIZES)
def test_an_mp4_is_what_it_says_it_is(tmp_path, lines):
    """Its samples, as BT.709 defines them, are the colours that were written."""
    path = tmp_path / "x.mp4"
    write_video(path, quarters(*SIZES[lines]), 8)
    done = ffmpeg("-i", path, "-vf", "showinfo", "-frames:v", 1, "-f", "rawvideo", "-")
    said = done.stderr.decode()
    for tag in ("range:tv", "space:bt709", "primaries:bt709", "trc:bt709"):
        assert f"color_{tag}" in said
    width, height = map(int, re.findall(r" s:(\d+)x(\d+) ", said)[0])
    samples = np.frombuffer(done.stdout, np.uint8)
    y, u, v = np.split(samples, [height * width, height * width * 5 // 4])
    planes = [y.reshape(height, width)] + [x.reshape(height // 2, width // 2) for x in (u, v)]
    y, u, v = (middles(plane[..., None])[:, 0] for plane in planes)
    y, u, v = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    rgb = np.stack([y + 1.5748 * v, y - 0.1873 * u - 0.4681 * v, y + 1.8556 * u], -1)
    assert np.abs(255 * rgb - COLORS).max() < 4
    for read in (read_video(path), read_timed(path).numpy()):
        assert np.abs(middles(read[0]) - COLORS).max() < 4


@pytest.mark.parametrize("matrix", ["bt709", "smpte170m", "bt2020nc"])
def test_a_video_of_another_matrix_is_read_as_it_is_tagged(tmp_path, matrix):
    x = quarters(64, 64)
    to = {"smpte170m": "bt601", "bt2020nc": "bt2020"}.get(matrix, matrix)
    filters = f"scale=out_color_matrix={to}:out_range=tv,format=yuv444p"
    ffmpeg("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x64", "-r", 8, "-i", "-", "-vf", filters,
           "-colorspace", matrix, "-crf", 4, tmp_path / "x.mp4", input=x.tobytes())
    assert np.abs(middles(read_timed(tmp_path / "x.mp4")[0].numpy()) - COLORS).max() < 5


@pytest.mark.parametrize("tags", ["color_primaries=bt2020:color_trc=smpte2084",
                                  "color_primaries=bt709:color_trc=arib-std-b67",
                                  "color_primaries=smpte432:color_trc=bt709"])
def test_wide_colours_are_refused_and_not_taken_for_others(tmp_path, tags):
    ffmpeg("-f", "lavfi", "-i", f"color=red:64x64:8:0.5,setparams={tags}",
           *tags.replace(":", "=").replace("color_", "-color_").split("="), tmp_path / "x.mp4")
    with pytest.raises(UserError, match="x.mp4 cannot be read .its colours, color_.*, are not"):
        read_timed(tmp_path / "x.mp4")


@pytest.mark.skipif(PATH is None, reason="there is no Chromium")
def test_a_browser_shows_the_colours_that_were_written(tmp_path):
    sizes = {lines: SIZES[lines] for lines in (64, 576, 1024)}
    for lines, size in sizes.items():
        write_video(tmp_path / f"{lines}.mp4", quarters(*size), 8)
    style = "width=100 height=100 style='position:absolute;top:0;object-fit:fill;left:%dpx'"
    Path(tmp_path / "x.html").write_text("".join(
        f"<video muted preload=auto src={lines}.mp4 {style % (100 * i)}></video>"
        for i, lines in enumerate(sizes)))
    with Chromium(tmp_path / "profile") as browser:
        browser.open(tmp_path / "x.html")
        browser.until("[...document.querySelectorAll('video')].every((x) => x.readyState >= 2)")
        browser.run("new Promise((done) => setTimeout(done, 500))")  # until they are drawn
        browser.picture(tmp_path / "x.png")
    shown = np.asarray(Image.open(tmp_path / "x.png").convert("RGB"))
    for i, lines in enumerate(sizes):
        got = middles(shown[:100, 100 * i : 100 * (i + 1)])
        # Without a GPU it multiplies by 2 for blue where BT.709 has 2.11.
        assert np.abs(got - COLORS).max() < 10, (lines, got)
