"""Files are whole or not there: killed writers, full disks, and writers that only say that they
wrote."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

from zerosmooth import files, video
from zerosmooth.checkpoint import save
from zerosmooth.families import FAMILIES
from zerosmooth.fields import UserError
from zerosmooth.files import remove_left, scratch, whole
from zerosmooth.video import check_writer, write_picture, write_video

from .conftest import TINY_CONFIG

FRAMES = np.random.default_rng(0).integers(256, size=(8, 256, 256, 3), dtype=np.uint8)


def ffmpeg(tmp_path: Path, monkeypatch, script: str) -> None:
    """Let videos be written by a program of ours; REAL is the true one."""
    path = tmp_path / "ffmpeg.sh"
    path.write_text(f"#!/bin/bash\n{script.replace('REAL', video.get_ffmpeg_exe())}\n")
    path.chmod(0o755)
    monkeypatch.setattr(video, "get_ffmpeg_exe", lambda: str(path))


@pytest.mark.parametrize(
    "script,reason",
    [
        ('ulimit -f 12; exec REAL "$@"', "it exceeds the largest size of a file"),
        ('ulimit -f 12; REAL "$@"; exit $?', "it exceeds the largest size of a file"),
        ("exit 1", "ffmpeg ended with status 1"),
        ("cat > /dev/null; exit 0", "0 of 8 frames can be read back"),
        ('echo "av_write_frame: No space left on device" >&2; exit 1',
         "the disk is full; make room"),
        ("cat > /dev/null; kill -9 $$", "ffmpeg ended with status -9"),
        ('exec REAL "${@:1:$#-1}" -frames:v 5 "${@: -1}"', "5 of 8 frames can be read back"),
        ('REAL "$@"; truncate -s 60000 "${@: -1}"; exit 0', "frames can be read back"),
        ("exit 0", "0 of 8 frames can be read back"),
    ],
)
def test_a_writer_that_fails_leaves_nothing(tmp_path, monkeypatch, script, reason):
    ffmpeg(tmp_path, monkeypatch, script)
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError) as error:
        write_video(tmp_path / "out/x.mp4", FRAMES, 8)
    said = str(error.value)
    assert said.startswith(f"{tmp_path / 'out/x.mp4'} cannot be written: ")
    assert reason in said and "\n" not in said
    assert not list((tmp_path / "out").iterdir())


def test_a_missing_writer_is_told_before_long_work(tmp_path, monkeypatch):
    def missing() -> str:
        raise RuntimeError("No ffmpeg exe could be found.\nInstall it")

    monkeypatch.setattr(video, "get_ffmpeg_exe", missing)
    with pytest.raises(OSError, match=r"no ffmpeg can be run .No ffmpeg exe could be found.*--gif"):
        check_writer(tmp_path, ".mp4")
    check_writer(tmp_path, ".gif")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fps", [0.1, 7, 8.5, 23.976, 240])
@pytest.mark.parametrize("size", [(64, 64), (67, 131), (256, 400)])
def test_every_rate_and_size_reads_back_whole(tmp_path, size, fps):
    frames = np.zeros((5, *size, 3), np.uint8)
    for suffix in (".mp4", ".gif") if fps < 50 else (".mp4",):
        write_video(tmp_path / f"x{suffix}", frames, fps)
    assert len(iio.imread(tmp_path / "x.mp4", plugin="FFMPEG")) == 5
    assert {p.name for p in tmp_path.iterdir()} <= {"x.mp4", "x.gif"}
    if fps > 50:
        with pytest.raises(UserError, match="at most 50 frames a second, not 240; use .mp4"):
            write_video(tmp_path / "x.gif", frames, fps)


def test_what_is_no_video_is_refused(tmp_path):
    for frames, fps in ((FRAMES[0], 8), (FRAMES[:0], 8), (FRAMES / 255, 8), (FRAMES, 0),
                        (FRAMES, float("nan"))):
        with pytest.raises(ValueError):
            write_video(tmp_path / "x.mp4", frames, fps)


def test_pictures_are_whole_or_not_there(tmp_path, monkeypatch):
    write_picture(tmp_path / "x.png", FRAMES[0])
    assert np.array_equal(iio.imread(tmp_path / "x.png"), FRAMES[0])

    def half(self, file, *rest, **options) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="y.png cannot be written: the disk is full; make room"):
        write_picture(tmp_path / "y.png", FRAMES[0])
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


def test_a_picture_that_reads_back_as_another_is_refused(tmp_path, monkeypatch):
    save_image = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", lambda self, *rest,
                        **options: save_image(self.rotate(90), *rest))
    with pytest.raises(OSError, match="reads back as something else"):
        write_picture(tmp_path / "y.png", FRAMES[0])
    assert not list(tmp_path.iterdir())


def test_a_full_disk_ends_a_conversion_in_one_sentence(tmp_path, pipeline):
    def tensors():
        yield from list(pipeline.networks.state_dict().items())[:3]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "x.safetensors"
    with pytest.raises(OSError) as error:
        save(path, FAMILIES["vc2"], TINY_CONFIG, tensors(), torch.float32, "", "")
    assert str(error.value) == f"{path} cannot be written: {files.FULL[errno.ENOSPC]}"
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    with pytest.raises(OSError, match="x.mp4 cannot be written: (No such file|Not a directory)"):
        write_video(tmp_path / "none/x.mp4", FRAMES, 8)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="x.png cannot be written: Not a directory"):
        write_picture(tmp_path / "file/x.png", FRAMES[0])


def test_errors_of_something_else_are_left_alone(tmp_path):
    with pytest.raises(FileNotFoundError) as error, whole(tmp_path / "x"):
        open(tmp_path / "the source")
    assert error.value.filename == str(tmp_path / "the source") and not list(tmp_path.iterdir())


def test_what_dead_processes_left_is_removed_and_what_living_ones_write_is_not(tmp_path):
    remove_left.cache_clear()
    left = [tmp_path / name
            for name in (".x.1234.part.mp4", ".vc2.safetensors.77.part", ".x.5.part.png",
                         ".x.0123456789abcdef.part.gif")]
    kept = [tmp_path / name for name in ("x.mp4", "x.part", ".x.part", ".hidden", ".x.one.part")]
    for path in left + kept:
        path.touch()
        os.utime(path, (0, 0))
    os.utime(left[0], (2**32, 2**32))  # of a clock that was far ahead
    with scratch(tmp_path / "other.mp4") as writing:
        assert sorted(tmp_path.iterdir()) == sorted([*kept, writing])
        os.utime(writing, (0, 0))
        remove_left.cache_clear()
        remove_left(tmp_path)
        assert writing.exists()
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_processes_of_one_number_write_beside_each_other(tmp_path, monkeypatch):
    """As in two containers, in each of which they are process 1."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with whole(tmp_path / "x.mp4") as one, whole(tmp_path / "x.mp4") as other:
        one.write_bytes(b"one")
        other.write_bytes(b"other")
        assert one.read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["x.mp4"]


CHILD = """
import sys, time
from pathlib import Path
from zerosmooth.files import whole
def work():
    with whole(Path(sys.argv[1])) as part:
        part.write_bytes(b"half")
        print("writing", flush=True)
        time.sleep(60)
    return 0
from zerosmooth_cli.command import run_command
sys.exit(run_command("test", work, "nothing was written"))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_writers_leave_nothing_or_what_the_next_run_removes(tmp_path, number):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "x.mp4")], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE
    )
    assert child.stdout.readline() == b"writing\n"
    child.send_signal(number)
    said = child.communicate(timeout=60)[1].decode()
    if number == signal.SIGKILL:
        (part,) = tmp_path.iterdir()
        assert part.read_bytes() == b"half"
        time.sleep(1.1)  # a file is young for a second
        files.remove_left.cache_clear()
        write_picture(tmp_path / "x.png", FRAMES[0])
        assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
    else:
        assert "test: stopped; nothing was written" in said and "Traceback" not in said
        assert child.returncode == 128 + number and not list(tmp_path.iterdir())
