"""A file knows how it was made, and what it says of it is checked; names, paces, and what goes
beside the videos."""

import hashlib
import json
import os
import random
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from zerosmooth import video
from zerosmooth.config import build
from zerosmooth.families import FAMILIES
from zerosmooth.fields import UserError
from zerosmooth.settings import Settings, settings_for
from zerosmooth.video import as_comment, read_video, side_by_side, write_picture, write_video
from zerosmooth_cli import again
from zerosmooth_cli.comments import read_comment

from .command import QUICK, contents, make, quick, records, run

NOISE = np.random.default_rng(0).integers(256, size=(8, 16, 24, 3), dtype=np.uint8)
ODD = 'a "cat" é 赤 \U0001f600 = ; # \\ \udcff\u2028\n'
TEXT = as_comment({"prompt": ODD, "long": "x" * 70_000})
CPU = ["--device", "cpu"]


# --- comments


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
def test_a_comment_is_read_as_it_was_written(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    for text in (TEXT, ""):
        if suffix == ".png":
            write_picture(path, NOISE[0], text)
        else:
            write_video(path, NOISE, 8, text)
        assert read_comment(path) == text
    assert json.loads(TEXT)["prompt"] == ODD


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
def test_damaged_files_have_no_comment_or_are_refused(tmp_path, suffix):
    rng, path = random.Random(0), tmp_path / f"x{suffix}"
    if suffix == ".png":
        write_picture(path, NOISE[0], TEXT)
    else:
        write_video(path, NOISE, 8, TEXT)
    whole = path.read_bytes()
    kinds = (b"moov", b"udta", b"meta", b"ilst", b"\xa9cmt", b"data", b"tEXt", b"iTXt")
    marks = [at for kind in kinds if (at := whole.find(kind)) > 0] or [4]
    for _ in range(80):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 3))):
            near = rng.choice(marks) - 4 + rng.randrange(12)
            content[near if rng.random() < 0.7 else rng.randrange(len(whole))] = rng.randrange(256)
        path.write_bytes(content[: rng.choice((len(content), rng.randrange(len(content))))])
        try:
            assert isinstance(read_comment(path), str)
        except UserError as error:
            assert str(path) in str(error)


# --- the same bytes


def test_the_same_frames_are_the_same_bytes_on_any_number_of_cores_and_kind_of_cpu(
        tmp_path, monkeypatch):
    frames = NOISE.repeat(11, 1).repeat(11, 2)

    def digest(cores: set[int], kind: str = "") -> str:
        every = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)
        try:
            with monkeypatch.context() as patch:
                patch.setattr(video, "EXACT", (*video.EXACT[:-1], video.EXACT[-1] + kind))
                write_video(tmp_path / "x.mp4", frames, 8)
        finally:
            os.sched_setaffinity(0, every)
        return hashlib.sha256((tmp_path / "x.mp4").read_bytes()).hexdigest()

    cores = os.sched_getaffinity(0)
    kinds = ("", ":asm=avx2", ":asm=sse4.2", ":asm=0")
    assert len({digest({min(cores)}), *(digest(cores, kind) for kind in kinds)}) == 1


# --- made again


@pytest.fixture(scope="module")
def odd(tiny, tmp_path_factory) -> Path:
    """The folder of a video with odd settings."""
    folder = tmp_path_factory.mktemp("odd")
    make(tiny, "--prompt", "a cat, é 赤", "--preset", "anchored", "--guidance_scale", 2.5,
         "--seed", 5, "--set", "negative_prompt=dogs", "eta=0.5", "overlap=2", "save_fps=6",
         "frame_chunk=3", "side_by_side=true", "--outdir", folder)
    return folder


@pytest.mark.parametrize("suffix", ["_8f.mp4", ".png", "_side_by_side.mp4"])
def test_one_file_alone_makes_all_of_them_again(odd, tmp_path, monkeypatch, suffix):
    (file,) = (path for path in odd.iterdir() if path.name.endswith(suffix))
    alone = shutil.copy(file, tmp_path / f"renamed{file.suffix}")
    monkeypatch.setattr("sys.argv", ["other.py"])
    said = run("--again", alone, "--set", "side_by_side=true", *CPU, "--outdir", tmp_path / "new")
    assert "may differ" not in said and "another" not in said
    assert contents(tmp_path / "new") == contents(odd)


def test_a_gif_is_made_again_as_one(tiny, tmp_path, monkeypatch):
    quick(monkeypatch)
    make(tiny, "--method", "freenoise", "--set", "gif=true", "--outdir", tmp_path / "out")
    (file,) = (tmp_path / "out").glob("*_4f.gif")
    run("--again", file, *CPU, "--outdir", tmp_path / "new")
    assert contents(tmp_path / "new") == contents(tmp_path / "out")
    run("--again", file, *CPU, "--set", "gif=false", "--outdir", tmp_path / "other")
    assert len(list((tmp_path / "other").glob("*.mp4"))) == 2


def test_what_is_said_goes_before_the_record(tiny, tmp_path, monkeypatch):
    quick(monkeypatch)
    asked = ["--prompt", "a cat", "--seed", 5, "--set", "spatial=false", "strength=0.5",
             "overlap=1", "gif=true", "picture=false"]
    make(tiny, *asked, "--outdir", tmp_path)
    (file,) = tmp_path.glob("*_8f.gif")

    def again(*flags) -> dict:
        folder = tmp_path / "-".join(map(str, flags))
        run("--again", file, *flags, *CPU, "--set", "picture=false", "--outdir", folder)
        return records(folder)[0]

    before = again("--seed", 5)
    settings = before["settings"]
    assert settings["strength"] == 0.5 and not settings["spatial"] and settings["overlap"] == 1
    denser = again("--scale", 4)
    assert denser["frames"] == [4, 8, 16] and denser["play_fps"] == [8, 16, 32]
    assert denser["settings"] == settings | {"scale": 4} and denser["seed"] == 5
    assert again("--seed", 7)["seed"] == 7 and again("--prompt", "a dog")["prompt"] == "a dog"
    assert again("--set", "spatial=true")["settings"]["spatial"]
    assert again("--set", "overlap=none")["settings"]["overlap"] is None
    direct = again("--method", "direct")["settings"]
    assert direct["method"] == "direct" and direct["strength"] == Settings.strength
    assert again("--scale", 1)["frames"] == [4]
    assert again("--set", "save_fps=4")["play_fps"] == [2, 4]


@pytest.mark.parametrize("asked", [
    {}, {"preset": "anchored"}, {"method": "freenoise"}, {"method": "direct", "steps": 3},
    {"scale": 1}, {"prediction": "lines", "strength": 0.25, "draw_seed": -(2**63)},
    {"preset": "anchored", "join": 0.5, "reuse": 2, "overlap": 1}])
def test_settings_come_back_from_a_record_as_they_were(pipeline, asked):
    family, config = pipeline.family, pipeline.config
    before = settings_for(family, config, **asked)
    assert build(Settings(), json.loads(json.dumps(asdict(before)))) == before
    assert settings_for(family, config, before) == before


def test_a_preset_beside_a_baseline_comes_back_too(pipeline):
    """As it was once recorded; nobody can ask for it any more."""
    family, config = pipeline.family, pipeline.config
    before = replace(settings_for(family, config, preset="anchored"), method="ddnm")
    assert settings_for(family, config, before) == before
    assert settings_for(family, config, before, preset="paper") == settings_for(family, config)
    anchored = settings_for(family, config, preset="anchored")
    assert settings_for(family, config, before, method="zerosmooth") == anchored
    with pytest.raises(UserError, match="preset does nothing a baseline can use"):
        settings_for(family, config, before, method="direct", preset="fast")


def test_an_image_is_found_where_it_was_or_beside_the_file(tiny, tmp_path, monkeypatch):
    quick(monkeypatch)
    photo, other = (np.full((30, 50, 3), value, np.uint8) for value in (60, 160))
    (tmp_path / "photos").mkdir()
    image, beside = tmp_path / "photos/a.png", tmp_path / "out/a.png"
    iio.imwrite(image, photo)
    make(tiny, "--image", image, "--set", "gif=true", "--outdir", tmp_path / "out", family="svd")
    (file,) = (tmp_path / "out").glob("*_8f.gif")
    new = ["--again", file, *CPU, "--outdir", tmp_path / "new"]
    run(*new)
    assert contents(tmp_path / "new") == contents(tmp_path / "out")
    iio.imwrite(image, other)
    said = run(*new, status=1)
    assert f"the image {image}, and {image} is another one now; name the image" in said
    image.unlink()
    assert "is not there any more; name the image to use: --image FILE" in run(*new, status=1)
    iio.imwrite(beside, photo)
    assert "1 of 1 videos are in" in run(*new)
    beside.unlink()
    iio.imwrite(tmp_path / "b.png", other)
    run(*new, "--image", tmp_path / "b.png")
    assert len(records(tmp_path / "new")) == 2


def test_what_has_no_record_of_ours_is_told(odd, tmp_path):
    (file,) = odd.glob("*_8f.mp4")
    stripped, plain, text = tmp_path / "stripped.mp4", tmp_path / "plain.png", tmp_path / "x.json"
    command = [video.get_ffmpeg_exe(), "-v", "error", "-i", file, "-map_metadata", "-1", "-c",
               "copy", stripped]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    Image.new("RGB", (4, 4)).save(plain)
    text.write_text("[" * 100_000)
    for path in (stripped, plain, text):
        said = run("--again", path, status=1)
        assert f"{path} has no record of how it was made; give a video" in said
    (tmp_path / "x.txt").write_text("x")
    for name, reason in (("x.txt", "is no mp4, GIF, PNG or json"), ("none.mp4", "does not exist"),
                         ("", "no regular")):
        assert reason in run("--again", tmp_path / name, status=1)


def test_another_checkpoint_is_told(tiny, tmp_path, monkeypatch):
    quick(monkeypatch)
    own, out = tmp_path / "own.safetensors", ["--outdir", tmp_path / "out"]
    shutil.copy(tiny / "vc2.safetensors", own)
    run("--ckpt", own, *QUICK, "gif=true", *out)
    (file,) = (tmp_path / "out").glob("*_8f.gif")
    shutil.copy(tiny / "lavie.safetensors", own)
    said = run("--again", file, *CPU, *out, status=1)
    assert "was made with another checkpoint than" in said
    assert "name the one to use: --ckpt" in said
    own.unlink()
    said = run("--again", file, *CPU, *out, status=1)
    assert f"made with the checkpoint {own}, which is not there; name it: --ckpt" in said
    said = run("--again", file, "--ckpt", tiny / "vc2.safetensors", *CPU, *out)
    assert "1 of 1 videos are in" in said
    said = run("--again", file, "--ckpt", tiny / "vc1.safetensors", *CPU, *out)
    assert "so this will be another video" in said


@pytest.fixture(scope="module")
def finished(odd) -> dict:
    return records(odd)[0]


@pytest.mark.parametrize(("path", "value", "reason"), [
    ("settings.steps", "x", "settings.steps='x' is str"),
    ("settings.guidance_scale", float("nan"), "guidance_scale=nan"),
    ("settings.scale", 3, "scale=3; use one of 1, 2, 4, 8"),
    ("settings.magic", 1, "'magic' is no field that this version knows"),
    ("settings", [], "settings. is [], not an object"),
    ("settings.height", 1 << 40, "height"),
    ("settings.preset", "magic", "use one of paper, anchored"),
    ("seed", 1 << 70, "seed"),
    ("seed", True, "seed=True is bool"),
    ("prompt", "x" * 10_001, "10,001 letters"),
    ("prompt", 3, "prompt=3 is int"),
    ("prompt", "caf\udce9", "a prompt is no whole Unicode"),
    ("settings.negative_prompt", "\udce9", "negative_prompt is no whole Unicode"),
    ("play_fps", [1e5], "cannot play at"),
    ("play_fps", 8, "play_fps=8"),
    ("versions", {"torch": 1}, "torch=1 is int"),
    ("checkpoint", "//host/share/x.safetensors", "is not there; name it"),
    ("checkpoint", "/etc/passwd", "is neither a pickle nor"),
    ("checkpoint", "", "is not there"),
    ("image_sha256", "0" * 64, "name the image to use"),
    ("running.frame_chunk", -1, "frame_chunk=-1"),
    ("running.device", "toaster", None),
    ("device", "toaster", None),
])
def test_a_record_is_checked_as_flags_are(tmp_path, finished, monkeypatch, path, value, reason):
    monkeypatch.setattr("zerosmooth_cli.main.check.report", lambda *_: ["checked"])
    file, record = tmp_path / "x.json", json.loads(json.dumps(finished))
    *outer, last = path.split(".")
    (record[outer[0]] if outer else record)[last] = value
    file.write_text(json.dumps(record))
    said = run("--again", file, *CPU, "--check", status=0 if reason is None else 1)
    last = said.splitlines()[-1]
    assert last == "checked" if reason is None else reason in last
    assert last.startswith("sample.py: ") or reason is None


@pytest.mark.parametrize(("changes", "times", "flags"), [
    ({"height": 512}, 32, "--height 512"),
    ({"height": 8192, "width": 8184, "scale": 8}, 349_184, "--height 8192 --width 8184 --scale 8"),
    ({"height": 8192, "steps": 1000}, 128_000, "--height 8192 --steps 1000"),
])
def test_a_record_that_asks_for_much_is_asked_about(tmp_path, finished, monkeypatch, changes, times,
                                                   flags):
    sampled = quick(monkeypatch)
    monkeypatch.setattr("zerosmooth_cli.main.check.report", lambda *_: [])
    record = finished | {"settings": finished["settings"] | {"steps": 4, "scale": 2} | changes}
    (tmp_path / "x.json").write_text(json.dumps(record))
    new = ["--again", tmp_path / "x.json", *CPU, "--outdir", tmp_path / "out"]
    said = run(*new, status=1)
    assert f"asks for {times:,} times the work" in said and said.endswith(f"say so: {flags}\n")
    assert not sampled and not (tmp_path / "out").exists()
    run(*new, "--check")
    run(*new, "--height", 16, "--width", 24, "--steps", 2)
    assert len(sampled) == 1
    monkeypatch.setattr("zerosmooth_cli.main.make", lambda *_: 0)
    run(*new, *flags.split())


def test_nothing_in_a_record_reaches_a_terminal_as_it_is(tmp_path, finished, monkeypatch):
    monkeypatch.setattr("zerosmooth_cli.main.check.report", lambda *_: [])
    evil = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\nsample.py: all is well\r"
    record = finished | {"versions": {"torch": evil, "zerosmooth": evil}, "device": evil,
                         "family": evil, "image": evil, "converted_from": evil}
    (tmp_path / "x.json").write_text(json.dumps(record))
    said = run("--again", tmp_path / "x.json", *CPU, "--check")
    assert r"torch \x1b]52;c;ZXZpbA==\x07" in said and "\nsample.py" not in said
    assert all(line.isprintable() for line in said.split("\n"))
    (tmp_path / "x.json").write_text(json.dumps(record | {"checkpoint": evil}))
    said = run("--again", tmp_path / "x.json", *CPU, "--check", status=1)
    assert all(line.isprintable() for line in said.split("\n")) and "\nsample.py: all" not in said


def test_code_that_a_record_names_is_not_run(tmp_path, finished, monkeypatch):
    monkeypatch.setattr("zerosmooth_cli.main.check.report", lambda *_: [])
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    changed = finished | {"family": str(tmp_path / "evil.py"), "ckpt": "x", "outdir": "/"}
    (tmp_path / "x.json").write_text(json.dumps(changed))
    run("--again", tmp_path / "x.json", *CPU, "--check")
    assert not (tmp_path / "run").exists()


def test_a_record_of_a_compiled_run_asks_for_no_compiler(tmp_path, finished, monkeypatch):
    monkeypatch.setattr("zerosmooth.settings.shutil.which", lambda name: None)
    (tmp_path / "a.json").write_text(json.dumps(finished | {"running": {"compile": True}}))
    assert again.read_record(tmp_path / "a.json").seed == 5


def test_what_another_family_knows_nothing_of_is_left_out():
    """Nobody asked it of this one."""
    svd, vc2 = FAMILIES["svd"], FAMILIES["vc2"]
    before = settings_for(svd, svd.config, motion_bucket_id=100, steps=7)
    settings = settings_for(vc2, vc2.config, before, key_frames=16)
    own = settings_for(vc2, vc2.config)
    assert settings.steps == 7 and settings.motion_bucket_id == own.motion_bucket_id
    with pytest.raises(UserError, match="motion_bucket_id does nothing to vc2"):
        settings_for(vc2, vc2.config, before, motion_bucket_id=90)


# --- what goes beside, names, paces


def test_key_frames_are_held_beside_the_dense_video():
    stages = [np.full((n, 40, 300, 3), 0, np.uint8) for n in (2, 4, 8)]
    for stage in (stages[0], stages[2]):
        stage[:] = (np.arange(len(stage)) * (80 // len(stage)))[:, None, None, None]
    both = side_by_side(stages, [4, 8, 16])
    assert (both[:, 40, 100, 0] == np.repeat([0, 40], 4)).all()
    assert (both[:, 40, -100, 0] == np.arange(0, 80, 10)).all()


def test_what_is_asked_for_later_goes_beside_the_videos(tiny, tmp_path, monkeypatch):
    quick(monkeypatch)
    flags = ["--prompt", "a", "--outdir", tmp_path, "--set", "picture=false"]
    make(tiny, *flags)
    assert not list(tmp_path.glob("*.png"))
    said = make(tiny, *flags, "side_by_side=true")
    assert "was not asked for before; the video is made again" in said
    assert "1 of 1 videos are in" in make(tiny, *flags, "side_by_side=true")
    (file,) = tmp_path.glob("*_side_by_side.mp4")
    assert len(read_video(file)) == 8 and iio.immeta(file, plugin="FFMPEG")["fps"] == 16


def test_a_template_names_the_files(tiny, tmp_path, monkeypatch):
    quick(monkeypatch)

    def named(name, *flags, folder="out", **options):
        return make(tiny, *flags, "--outdir", tmp_path / folder, "--set", "gif=true",
                    f"name={name}", **options)

    named("{prompt}_{seed:03}_{frames}", "--prompt", "A cat!")
    names = {"a-cat_000_4.gif", "a-cat_000_8.gif", "a-cat_000_8.png", "a-cat_000_8.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {"index.html"}
    assert "1 of 1 videos are in" in named("{prompt}_{seed:03}_{frames}", "--prompt", "A cat!")
    named("x-{scale}-{steps}-{preset}-{key_frames}-{densest_only}", status=1)
    named("x-{scale}-{steps}-{preset}-{key_frames}", folder="new")
    ends = ("_4f.gif", "_8f.gif", ".png", ".json")
    assert {f"x-2-2-paper-4{end}" for end in ends} | {"index.html"} == {
        path.name for path in (tmp_path / "new").iterdir()}


def test_a_name_that_is_taken_is_told(tiny, tmp_path, monkeypatch):
    quick(monkeypatch)
    for place, name, flags in (("a-cat.json", "{prompt}", ["--seed", 1]),
                               ("a-cat_4.gif", "{prompt}_{frames}", ["--scale", 4])):
        of = ["--prompt", "a cat", "--outdir", tmp_path, "--set", "gif=true", f"name={name}"]
        make(tiny, *of)
        before = contents(tmp_path)
        said = make(tiny, *of, *flags, status=1)
        assert f"{place} is there already, and not this video" in said
        assert contents(tmp_path) == before
    (tmp_path / "mine.json").write_text("{}")
    said = make(tiny, "--outdir", tmp_path, "--set", "name=mine", status=1)
    assert "mine.json is there already" in said


def test_how_fast_a_video_plays_is_as_asked_and_is_said(tiny, tmp_path, monkeypatch):
    quick(monkeypatch)
    monkeypatch.setattr("zerosmooth_cli.main.check.report", lambda *_: [])
    said = make(tiny, "--outdir", tmp_path, "--set", "save_fps=30")
    assert ("note: 8 frames at 30 fps play in 0.267 s, not 0.5 s: 1.88 times faster than the model "
            "is told") in said
    for frames, fps in ((4, 15), (8, 30)):
        (file,) = tmp_path.glob(f"*_{frames}f.mp4")
        assert iio.immeta(file, plugin="FFMPEG")["fps"] == fps
    slow = ["--check", "--set", "save_fps=6"]
    assert "2.67 times slower than the model is told" in make(tiny, *slow)
    assert "than at their own 8 key frames a second" in make(tiny, *slow, family="lavie")
    assert "than the model" not in make(tiny, "--check", "--set", "save_fps=16")


def test_another_scale_keeps_the_seconds(odd, tmp_path, monkeypatch):
    monkeypatch.setattr("zerosmooth_cli.main.check.report", lambda *_: [])
    (file,) = odd.glob("*_8f.mp4")
    for scale, said in ((2, "4 key frames at 3 fps become 8 at 6 fps"),
                        (8, "4 key frames at 3 fps become 32 at 24 fps")):
        assert said in run("--again", file, "--scale", scale, *CPU, "--check")
