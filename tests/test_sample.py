"""The command as its user runs it, on tiny checkpoints with few steps."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from zerosmooth.checkpoint import Checkpoint
from zerosmooth.families import FAMILIES
from zerosmooth.pipeline import NonFiniteError, Pipeline
from zerosmooth.settings import Settings, options
from zerosmooth_cli.arguments import read_settings

from .command import QUICK, ROOT, grey, make, quick, records, run, sample

SQUARE = ["--prompt", "a green square moving up", "--seed", "5"]


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """The folder of one run, and what it said."""
    folder = tmp_path_factory.mktemp("outputs")
    return folder, make(tiny, *SQUARE, "--outdir", folder)


def test_it_writes_videos_a_picture_and_a_record(made):
    folder, said = made
    (record,) = records(folder)
    (stem,) = (path.stem for path in folder.glob("*.json"))
    assert stem.startswith("a-green-square-moving-up_seed5_")
    names = {f"{stem}{end}" for end in ("_4f.mp4", "_8f.mp4", ".png")}
    assert record["files"].keys() == names
    assert {path.name for path in folder.iterdir()} == names | {f"{stem}.json", "index.html"}
    assert "4 frames, 8 fps, 0.5 s" in said and "8 frames, 16 fps, 0.5 s" in said
    assert record["frames"] == [4, 8] and record["play_fps"] == [8, 16] and record["seed"] == 5
    assert record["versions"]["torch"] and len(record["checkpoint_digest"]) == 64


def test_a_record_has_all_settings_by_their_names(made):
    (record,) = records(made[0])
    assert record["settings"].keys() == {option.name for option in options(Settings)}
    assert record["settings"]["key_frames"] == 4 and record["settings"]["scale"] == 2


def test_the_page_shows_the_videos_and_says_how_they_were_made(made):
    folder, _ = made
    (text,) = re.findall(r'class="entry".*?>(.*)</script>', (folder / "index.html").read_text())
    entry, (stem,) = json.loads(text), (path.stem for path in folder.glob("*.json"))
    assert entry["title"] == "a green square moving up"
    assert entry["command"] == f"python -m zerosmooth --again {folder / stem}_8f.mp4"
    assert entry["settings"]["steps"] == 2 and entry["settings"]["preset"] == "paper"
    shown = [(panel["frames"], panel["fps"], panel["file"]) for panel in entry["panels"]]
    assert shown == [(4, 8, f"{stem}_4f.mp4"), (8, 16, f"{stem}_8f.mp4")]


def test_mp4_is_h264_that_browsers_play(made):
    for frames, fps in ((4, 8), (8, 16)):
        (path,) = made[0].glob(f"*_{frames}f.mp4")
        meta = iio.immeta(path, plugin="FFMPEG")
        assert len(iio.imread(path)) == frames
        assert meta["codec"] == "h264" and meta["pix_fmt"].startswith("yuv420p")
        assert meta["fps"] == fps


def test_a_finished_video_is_not_made_again(tiny, made, monkeypatch):
    """Neither with settings that change none."""
    sampled, (folder, _) = quick(monkeypatch), made
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    for same in ([], ["--set", "sequential_guidance=true", "frame_chunk=2"]):
        assert "1 of 1 videos are in" in make(tiny, *SQUARE, *same, "--outdir", folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before and not sampled


def test_other_settings_make_other_files(tiny, tmp_path, monkeypatch):
    quick(monkeypatch)
    for setting in ("eta=0.5", "save_fps=4"):
        make(tiny, "--set", "gif=true", setting, "--outdir", tmp_path)
    assert len(records(tmp_path)) == 2


def test_each_prompt_is_made_once_with_each_seed(tiny, tmp_path, monkeypatch):
    quick(monkeypatch)
    (tmp_path / "prompts").write_text("# mine\n\na cat\na cat\n  a dog  \n")
    make(tiny, "--prompt_file", tmp_path / "prompts", "--num_videos", 2, "--set", "gif=true",
         "--outdir", tmp_path / "out")
    made = {(record["prompt"], record["seed"]) for record in records(tmp_path / "out")}
    assert made == {(prompt, seed) for prompt in ("a cat", "a dog") for seed in (0, 1)}


def test_a_gif_lasts_as_long_as_an_mp4(tiny, tmp_path, monkeypatch):
    quick(monkeypatch)
    make(tiny, "--set", "gif=true", "--outdir", tmp_path)
    (gif,) = tmp_path.glob("*_8f.gif")
    assert sum(iio.immeta(gif, index=i)["duration"] for i in range(8)) == 500  # milliseconds


def test_baselines_share_the_base_video(tiny, made, tmp_path):
    flags = ["--method", "direct", "--set", "picture=false", "page=false", "--outdir", tmp_path]
    make(tiny, *SQUARE, *flags)
    for frames, same in ((4, True), (8, False)):
        a, b = (next(folder.glob(f"*_{frames}f.mp4")) for folder in (made[0], tmp_path))
        assert np.array_equal(iio.imread(a), iio.imread(b)) is same


def test_one_video_and_no_page_where_no_more_is_asked_for(tiny, tmp_path, monkeypatch):
    """And its record remakes it."""
    quick(monkeypatch)
    only = ["--set", "densest_only=true", "page=false"]
    said = make(tiny, *only, "picture=false", "--outdir", tmp_path / "a")
    assert "index.html" not in said
    (file,) = (path for path in (tmp_path / "a").iterdir() if path.suffix != ".json")
    (record,) = records(tmp_path / "a")
    assert file.name.endswith("_8f.mp4") and record["frames"] == [8]
    run("--again", tmp_path / "a" / f"{file.stem.removesuffix('_8f')}.json", *only,
        "--device", "cpu", "--outdir", tmp_path / "b")
    assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()
    assert len(list((tmp_path / "b").iterdir())) == 3  # with a picture


def test_the_page_has_a_densest_video_alone(tiny, tmp_path, monkeypatch):
    quick(monkeypatch)
    make(tiny, "--set", "densest_only=true", "--outdir", tmp_path)
    (text,) = re.findall(r'class="entry".*?>(.*)</script>', (tmp_path / "index.html").read_text())
    assert [(panel["frames"], panel["fps"]) for panel in json.loads(text)["panels"]] == [(8, 16)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, suffix in enumerate(("png", "jpg")):
        iio.imwrite(folder / f"photo{i}.{suffix}", np.full((30, 50, 3), 60 + 100 * i, np.uint8))
    return folder


def test_images_become_videos(tmp_path, tiny, photos):
    flags = ["--set", "gif=true", "decode_chunk_size=2", "--outdir", tmp_path]
    make(tiny, "--image", photos, *flags, family="svd")
    first, second = sorted(records(tmp_path), key=lambda record: record["image"])
    assert first["image"] == "photo0.png" and second["image"] == "photo1.jpg"
    assert second["image_sha256"] == sha256((photos / "photo1.jpg").read_bytes()).hexdigest()
    settings = second["settings"]
    assert settings["motion_bucket_id"] == 180 and settings["decode_chunk_size"] == 2
    assert second["play_fps"] == [7, 14]


@pytest.mark.parametrize("family", ["vc2", "svd"])
def test_check_says_what_a_checkpoint_is_and_needs(tiny, family, monkeypatch):
    monkeypatch.setattr("zerosmooth_cli.check.matrix_rate", lambda *_: 1e12)
    said = make(tiny, "--check", "--set", "frame_chunk=2", family=family)
    for text in (f"a whole {family} checkpoint", "M parameters", "memory: weights",
                 "TFLOP a step", "2 steps up to", "decoding"):
        assert text in said


@pytest.mark.parametrize(("error", "words"), [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee the manual"),
     "Tried to allocate 2 GiB."),
    (torch.OutOfMemoryError(""), ""),
    (RuntimeError("CUDA error: out of memory\nSee the manual"), "CUDA error"),  # the driver's
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`"), "CUBLAS"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "CPUAllocator"),
    (MemoryError(), ""),
])
def test_running_out_of_memory_tells_which_settings_take_less(
        error, words, tiny, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(Pipeline, "sample", fails)
    said = make(tiny, "--outdir", tmp_path, status=1).splitlines()[-1]
    assert said.startswith("sample.py: the device is out of memory")
    assert words in said and "manual" not in said and "try --set offload=true" in said


def test_a_video_that_turns_nan_does_not_keep_the_others_back(tmp_path, tiny, monkeypatch):
    def fails_once(*given, seeds, **options):
        if seeds == 0:
            raise NonFiniteError("step 1 made NaN")
        return grey(*given, seeds=seeds, **options)

    monkeypatch.setattr(Pipeline, "sample", fails_once)
    flags = ["--prompt", "a", "--num_videos", 2, "--outdir", tmp_path]
    assert "no video of 'a', seed 0: step 1 made NaN" in make(tiny, *flags, status=1)
    assert [record["seed"] for record in records(tmp_path)] == [1]


def test_interrupting_leaves_finished_videos_whole(tiny, tmp_path):
    command = [sys.executable, ROOT / "sample.py", "--ckpt", tiny / "vc2.safetensors", *QUICK,
               "--num_videos", "500", "--set", "gif=true", "--outdir", tmp_path]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which background jobs ignore
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    for _ in range(600):
        if list(tmp_path.glob("*.json")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped; finished videos are whole" in said
    assert records(tmp_path)
    for record in records(tmp_path):
        for name in record["files"]:
            assert len(iio.imread(tmp_path / name))
    assert not list(tmp_path.glob(".*"))


def test_the_installed_package_brings_its_files(tmp_path):
    """From another folder, as `pip install` left it."""
    code = "import zerosmooth, weights_convert; zerosmooth.load().networks.encoder.encode(['a'])"
    try:
        version("zerosmooth")
    except PackageNotFoundError:
        pytest.skip("zerosmooth is not installed")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("family", "steps", "taken"), [
    ("vc2", 30, 31), ("vc2", 50, 50), ("lavie", 30, 30), ("svd", 30, 30)])
def test_another_number_of_steps_than_asked_for_is_told(family, steps, taken, capsys):
    family, args = FAMILIES[family], sample.parse(["--steps", str(steps), "--device", "cpu"])
    checkpoint = Checkpoint(Path("x"), family, family.config, {}, "F32", 0, "", "", "", 0)
    read_settings(args, checkpoint)
    said = f"note: {taken} steps are taken, not {steps}"
    assert capsys.readouterr().out.startswith(said if taken != steps else "")
