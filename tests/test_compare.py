"""Two folders of videos: what belongs together, and how many frames a file has."""

import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe

from evaluation import compare
from evaluation.videos import GIF, OTHER, read_timed, repeats
from zerosmooth.fields import UserError
from zerosmooth.video import find_videos, read_video, write_video


def frames_of(count: int, stay: int = 1) -> np.ndarray:
    """A square that goes right, by 8 pixels after every `stay` frames: f h w 3, as large as
    videos are written."""
    out = np.full((count, 256, 256, 3), 60, np.uint8)
    for i in range(count):
        x = 8 * (i // stay)
        out[i, 96:160, x : x + 64] = (200, 120, 40)
    return out


def touch(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return str(folder)


def names_of(pairs) -> list[tuple[str, str]]:
    return [(one.name, other.name) for one, other in pairs]


def test_videos_sort_by_their_numbers(tmp_path):
    touch(tmp_path, *(f"v{i}.mp4" for i in (10, 2, 1)))
    assert [path.name for path in find_videos(tmp_path)] == ["v1.mp4", "v2.mp4", "v10.mp4"]
    pairs, how = compare.paired(f"{tmp_path}/*.mp4", touch(tmp_path / "b", "x1.mp4", "x9.mp4",
                                                          "x10.mp4"))
    assert names_of(pairs) == [("v1.mp4", "x1.mp4"), ("v2.mp4", "x9.mp4"), ("v10.mp4", "x10.mp4")]
    assert how == "in the order of their names"


def test_a_missing_video_is_told_and_shifts_no_others(tmp_path):
    a = touch(tmp_path / "a", "v1_16f.mp4", "v2_16f.mp4", "v3_16f.mp4")
    b = touch(tmp_path / "b", "v1_64f.gif", "v3_64f.gif", "v4_64f.gif")
    with pytest.raises(UserError, match=r"v2_16f.mp4 of .*a has no video of its name"):
        compare.paired(a, b)
    (tmp_path / "a/v2_16f.mp4").unlink()
    with pytest.raises(UserError, match=r"v4_64f.gif of .*b has no video"):
        compare.paired(a, b)
    (tmp_path / "b/v4_64f.gif").unlink()
    pairs, how = compare.paired(a, b)
    assert names_of(pairs) == [("v1_16f.mp4", "v1_64f.gif"), ("v3_16f.mp4", "v3_64f.gif")]
    assert how == "by name"


def test_where_no_names_agree_counts_must(tmp_path):
    a, b = touch(tmp_path / "a", "v1.mp4", "v2.mp4"), touch(tmp_path / "b", "one.mp4")
    with pytest.raises(UserError, match="2 videos and .* 1, and no names agree"):
        compare.paired(a, b)


def test_one_name_in_two_folders_or_lengths_is_two_videos(tmp_path):
    names = "cat/x.mp4", "dog/x.mp4"
    pairs, _ = compare.paired(touch(tmp_path / "a", *names), touch(tmp_path / "b", *names))
    assert [one.parent.name for one, _ in pairs] == [two.parent.name for _, two in pairs]
    names = "x_16f.mp4", "x_64f.mp4"
    pairs, how = compare.paired(touch(tmp_path / "c", *names), touch(tmp_path / "d", *names))
    assert how == "by name" and all(one == two for one, two in names_of(pairs))


@pytest.mark.parametrize("fps", [7, 8, 14, 28, 32, 50])
@pytest.mark.parametrize("stay", [1, 2, 3])
def test_gifs_keep_like_frames_apart(tmp_path, fps, stay):
    """Of 17 frames some are equal, and stored once."""
    frames = np.concatenate([frames_of(5), frames_of(17)[5:6].repeat(stay + 1, 0),
                             frames_of(17)[6 + stay :]])
    write_video(tmp_path / "x.gif", frames, fps)
    assert len(read_video(tmp_path / "x.gif")) == 17 - stay
    got = read_timed(tmp_path / "x.gif").numpy()
    assert got.shape == frames.shape
    assert np.abs(got.astype(int) - frames).max() < 8  # of the palette


def test_the_same_frames_measure_alike_as_gif_and_mp4(tmp_path):
    frames = frames_of(16)
    frames[5:8] = frames[5]
    write_video(tmp_path / "a.mp4", frames, 8)
    write_video(tmp_path / "b.gif", frames, 8)
    text = compare.compare(str(tmp_path / "a.mp4"), str(tmp_path / "b.gif"), {})
    assert float(text.split("| PSNR | ")[1].split(" ")[0]) > 35


def timed(path: Path, frames: np.ndarray, gaps: list[int]) -> None:
    """Frames that each stay for some hundredths of a second."""
    height, width = frames.shape[1:3]
    ends = np.cumsum([0, *gaps])[:-1]
    # ffmpeg's expression of a time stamp by frame number
    text = "+".join(f"{end}*eq(N\\,{i})" for i, end in enumerate(ends))
    command = [get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s",
               f"{width}x{height}", "-r", "100", "-i", "-", "-vf", f"settb=1/100,setpts={text}",
               "-fps_mode", "passthrough", "-enc_time_base", "1/100", "-c:v", "libx264", "-crf",
               "10", "-pix_fmt", "yuv444p", str(path)]
    subprocess.run(command, input=frames.tobytes(), check=True)


def test_time_stamps_decide_how_many_frames_a_file_has(tmp_path):
    frames = frames_of(16)
    timed(tmp_path / "even.mp4", frames, [12] * 16)
    assert len(read_timed(tmp_path / "even.mp4")) == 16
    gaps = [4, 4, 8, 4, 12, 4, 4, 4, 4, 8, 4, 4, 4, 4, 4, 4]  # equal frames were left out
    timed(tmp_path / "held.mp4", frames, gaps)
    got = read_timed(tmp_path / "held.mp4").numpy()
    expected = frames.repeat([gap // 4 for gap in gaps], 0)
    assert got.shape == expected.shape and np.abs(got.astype(int) - expected).mean() < 2
    uneven = [3, 11, 5, 17, 7, 4, 13, 6, 19, 5, 9, 3, 14, 8, 5, 10]
    timed(tmp_path / "uneven.mp4", frames, uneven)
    with pytest.raises(UserError, match=r"uneven.mp4 has no one rate: .* 0.030 to 0.190 s apart"):
        read_timed(tmp_path / "uneven.mp4")
    assert len(read_video(tmp_path / "uneven.mp4")) != 16  # which is why it is not used here


@pytest.mark.parametrize("fps", [7, 23.976, 25, 30, 60])
def test_plain_files_are_read_as_they_always_were(tmp_path, fps):
    write_video(tmp_path / "x.mp4", frames_of(9), fps)
    assert np.array_equal(read_timed(tmp_path / "x.mp4").numpy(), read_video(tmp_path / "x.mp4"))


def test_what_is_no_video_is_told(tmp_path):
    (tmp_path / "x.mp4").write_text("no")
    (tmp_path / "x.gif").write_text("no")
    for name in ("x.mp4", "x.gif", "none.mp4"):
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            read_timed(tmp_path / name)


def test_one_frame_is_a_video(tmp_path):
    write_video(tmp_path / "x.mp4", frames_of(1), 8)
    assert len(read_timed(tmp_path / "x.mp4")) == 1


@pytest.mark.parametrize("off", [GIF, OTHER])
def test_a_rate_is_found_through_rounding_and_none_where_there_is_none(off):
    rng = np.random.default_rng(0)
    for fps in (6, 7.5, 12, 23.976, 30):
        counts = rng.integers(1, 4, 40)
        counts[7] = 1
        ends = np.concatenate([[0], np.cumsum(counts)]) / float(Fraction(fps))
        ends = np.round(ends / (2 * off)) * 2 * off
        assert repeats(ends, off).tolist() == counts.tolist()
    for _ in range(50):
        assert repeats(np.cumsum(rng.uniform(0.03, 0.2, 20)), off) is None


def test_a_gif_without_a_rate_is_refused(tmp_path):
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames_of(12)]
    images[0].save(tmp_path / "x.gif", save_all=True, append_images=images[1:],
                   duration=[70, 130, 90, 210, 110, 50, 170, 80, 190, 60, 140, 100])
    with pytest.raises(UserError, match="x.gif has no one rate"):
        read_timed(tmp_path / "x.gif")
