"""From Python: what a video does by itself, and what is exported."""

import configparser
import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zerosmooth
from zerosmooth.fields import UserError
from zerosmooth.video import enlargement, read_video
from zerosmooth_cli.comments import read_comment

from .conftest import tiny_pipeline

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def video():
    (made,) = tiny_pipeline("vc2").sample("a cat", scale=2, steps=2, seeds=3)
    return made


def test_a_video_is_one_line(video):
    numbers = r"\d+, \d+ frames of \d+x\d+ at [\d.]+, [\d.]+ fps"
    assert re.fullmatch(rf"Video\('a cat', seed=3: {numbers}\)", repr(video))


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_pictures_that_move_are_saved_with_their_rate(video, tmp_path, suffix):
    path = video.save(tmp_path / f"x.{suffix}")
    with Image.open(path) as image:
        total = 0
        for i in range(image.n_frames):
            image.seek(i)
            image.load()
            total += image.info["duration"]
    assert total == round(1000 * len(video.frames[-1]) / video.fps[-1], -1)


def test_a_webp_shows_the_frames_themselves(video, tmp_path):
    with Image.open(video.save(tmp_path / "x.webp", stage=0)) as image:
        times = enlargement(video.frames[0].numpy())
        for i, frame in enumerate(video.frames[0].numpy()):
            image.seek(i)
            assert np.array_equal(np.asarray(image.convert("RGB"))[::times, ::times], frame)


def test_an_mp4_says_what_it_was_made_from(video, tmp_path):
    path = video.save(tmp_path / "x.mp4", stage=0)
    assert len(read_video(path)) == len(video.frames[0])
    made = json.loads(read_comment(path))
    assert (made["prompt"], made["seed"], made["settings"]["steps"]) == ("a cat", 3, 2)


def test_a_png_compares_the_stages(video, tmp_path):
    with Image.open(video.save(tmp_path / "x.png")) as image:
        assert image.size[0] >= 480 and read_comment(tmp_path / "x.png")


def test_other_names_are_refused(video, tmp_path):
    with pytest.raises(UserError, match="name it .mp4, .gif or .webp"):
        video.save(tmp_path / "x.avi")
    assert not list(tmp_path.iterdir())


def test_a_bar_shows_progress_where_it_is_asked_for(capsys):
    for asked in (True, False):
        tiny_pipeline("vc2").sample("a cat", scale=1, steps=2, progress=asked)
        assert bool(capsys.readouterr().err) is asked


@pytest.mark.parametrize(("asked", "hint"), [
    ({"seed": 7}, "there is no setting 'seed'; did you mean seeds?"),
    ({"offload": True}, "there is no setting 'offload'; write running=Running(offload=..)"),
    ({"step": 5}, "there is no setting 'step'; did you mean steps?"),
    ({"preset": "anchord"}, "preset='anchord'; did you mean anchored?"),
    ({"scale": 16}, "scale=16; use one of 1, 2, 4, 8")])
def test_errors_name_what_is_near(asked, hint):
    with pytest.raises(UserError, match=re.escape(hint)):
        tiny_pipeline("vc2").sample("a cat", **asked)


def test_a_missing_checkpoint_is_told_with_what_is_near(tmp_path):
    (tmp_path / "model-fp16.safetensors").touch()
    near = {"svd-smal": "svd-small",
            tmp_path / "model.safetensors": tmp_path / "model-fp16.safetensors"}
    for name, meant in near.items():
        for of in (zerosmooth.load, zerosmooth.describe):
            with pytest.raises(UserError, match=re.escape(f"did you mean {meant}?")):
                of(name)


def test_all_that_is_exported_is_there_and_documented():
    page = (ROOT / "docs/python.md").read_text()
    for name in zerosmooth.__all__:
        assert hasattr(zerosmooth, name) and re.search(rf"\b{name}\b", page), name


def test_the_installed_command_is_a_module_of_the_package_and_says_its_own_name(
        monkeypatch, capsys):
    written = configparser.ConfigParser()
    written.read(ROOT / "setup.cfg")
    assert "py_modules" not in written["options"]  # which others' modules could hide
    name, _, place = written["options.entry_points"]["console_scripts"].strip().partition(" = ")
    module, _, attribute = place.partition(":")
    run = getattr(importlib.import_module(module), attribute)
    monkeypatch.setattr("signal.getsignal", lambda number: None)  # and Ctrl-C stays pytest's
    for argv, said in {"--help": "zerosmooth --again", "--steps=0": "zerosmooth: steps"}.items():
        monkeypatch.setattr("sys.argv", ["/usr/bin/zerosmooth", argv])
        try:
            assert run() == 1
        except SystemExit as end:
            assert end.code == 0
        spoken = "".join(capsys.readouterr())
        assert said in spoken and "sample.py" not in spoken and name == "zerosmooth"


def test_a_pipeline_is_one_line():
    assert re.fullmatch(r"Pipeline\(svd: from image, torch.float32 on cpu\)",
                        repr(tiny_pipeline("svd")))


def test_a_checkpoint_fits_on_a_screen(tiny):
    assert len(repr(zerosmooth.describe(tiny / "vc2.safetensors"))) < 3000


def test_a_stage_that_is_not_there_is_refused(video, tmp_path):
    with pytest.raises(UserError, match="stage=2; use -2 to 1"):
        video.save(tmp_path / "x.mp4", stage=2)


def test_paths_may_be_text(video, tmp_path):
    path = str(tmp_path / "x.png")
    zerosmooth.write_picture(path, video.frames[0][0].numpy())
    assert zerosmooth.read_image(path).shape == video.frames[0][0].shape
    path = str(tmp_path / "x.mp4")
    zerosmooth.write_video(path, video.frames[0].numpy(), 8)
    assert len(zerosmooth.read_video(path)) == len(video.frames[0])


def test_a_prompt_where_an_image_is_needed_says_how_to_read_one():
    with pytest.raises(UserError, match=r"from image, not from prompt; read_image\(path\)"):
        tiny_pipeline("svd").sample("first.png")


def test_what_is_no_image_is_said_in_words(tmp_path):
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(UserError, match="x.png is no image that can be read, or is damaged$"):
        zerosmooth.read_image(tmp_path / "x.png")
