"""A file knows how it was made, and what it says of it is checked; names, paces and what goes beside the videos."""

import hashlib
import json
import os
import random
import shutil
import subprocess
from argparse import Namespace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from zerosmooth import video
from zerosmooth.cascade import Cascade
from zerosmooth.cli import again
from zerosmooth.cli.again import Record
from zerosmooth.comments import as_comment, read_comment
from zerosmooth.families import FAMILIES
from zerosmooth.pipeline import Pipeline
from zerosmooth.settings import Settings, settings_for
from zerosmooth.video import read_video, side_by_side, write_picture, write_video

from .fuzz_runs import grey
from .test_sample import sample

NOISE = np.random.default_rng(0).integers(256, size=(8, 16, 24, 3), dtype=np.uint8)
TEXT = as_comment({"prompt": 'a "cat" é 赤 \U0001f600 = ; # \\ \udcff\u2028\n', "long": "x" * 70_000})


@pytest.fixture
def run(tiny, tmp_path, capsys):
    """Run sample.py: run(*arguments, status=0) -> what it said. Results go to `out` unless it is said."""

    def run(*arguments, status=0):
        capsys.readouterr()
        given = [*map(str, arguments), *([] if "--outdir" in arguments else ["--outdir", str(tmp_path / "out")])]
        assert sample.main([*given, "--device", "cpu"]) == status, capsys.readouterr()
        said = capsys.readouterr()
        return said.out + said.err

    return run


@pytest.fixture
def quick(monkeypatch):
    """Sampling that takes no time."""
    monkeypatch.setattr(Pipeline, "sample", grey)


@pytest.fixture
def make(run, tiny):
    """As `run`, with a tiny checkpoint and few steps."""
    return lambda *arguments, family="vc2", **options: run(
        *("--ckpt", tiny / f"{family}.safetensors", "--steps", 2, "--key_frames", 4, "--scale", 2),
        *arguments,
        **options,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix not in (".json", ".html")}


# --- comments


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
def test_a_comment_is_read_as_it_was_written(tmp_path, suffix):
    for text in (TEXT, as_comment({"prompt": "é"}), ""):
        path = tmp_path / f"x{suffix}"
        write_picture(path, NOISE[0], text) if suffix == ".png" else write_video(path, NOISE, 8, text)
        assert read_comment(path) == text
    assert json.loads(TEXT)["prompt"].endswith("\udcff\u2028\n")


def test_damaged_files_have_no_comment_or_are_refused(tmp_path):
    rng = random.Random(0)
    write_video(tmp_path / "x.mp4", NOISE, 8, TEXT)
    write_video(tmp_path / "x.gif", NOISE, 8, TEXT)
    write_picture(tmp_path / "x.png", NOISE[0], TEXT)
    for path in (tmp_path / "x.mp4", tmp_path / "x.gif", tmp_path / "x.png"):
        whole = path.read_bytes()
        marks = [
            i
            for kind in (b"moov", b"udta", b"meta", b"ilst", b"\xa9cmt", b"data", b"tEXt", b"iTXt")
            for i in [whole.find(kind)]
            if i > 0
        ]
        for _ in range(80):
            content = bytearray(whole)
            for _ in range(rng.choice((1, 3))):
                near = (
                    rng.choice(marks) - 4 + rng.randrange(12)
                    if marks and rng.random() < 0.7
                    else rng.randrange(len(whole))
                )
                content[near] = rng.randrange(256)
            path.write_bytes(content[: rng.choice((len(content), rng.randrange(len(content))))])
            try:
                assert isinstance(read_comment(path), str)
            except ValueError as error:
                assert str(path) in str(error)


# --- the same bytes


def test_the_same_frames_are_the_same_bytes_on_any_number_of_cores_and_kind_of_cpu(tmp_path, monkeypatch):
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
    found = {digest({min(cores)}), *(digest(cores, kind) for kind in ("", "", ":asm=avx2", ":asm=sse4.2", ":asm=0"))}
    assert len(found) == 1


# --- made again


@pytest.mark.parametrize("suffix", ["_8f.mp4", ".png", "_side_by_side.mp4"])
def test_one_file_alone_makes_all_of_them_again(make, run, tmp_path, suffix):
    odd = ["--seed", 5, "--eta", 0.5, "--guidance_scale", 2.5, "--overlap", 2, "--preset", "anchored", "--save_fps", 6]
    make("--prompt", "a cat, é 赤", "--negative_prompt", "dogs", *odd, "--frame_chunk", 3, "--side_by_side")
    (file,) = (path for path in (tmp_path / "out").iterdir() if path.name.endswith(suffix))
    alone = tmp_path / "alone" / f"renamed{file.suffix}"
    alone.parent.mkdir()
    shutil.copy(file, alone)
    said = run("--again", alone, "--side_by_side", "--outdir", tmp_path / "new")
    assert "may differ" not in said and "another" not in said
    assert contents(tmp_path / "new") == contents(tmp_path / "out")


def test_a_gif_is_made_again_as_one(make, run, tmp_path):
    make("--prompt", "a", "--gif", "--method", "freenoise")
    (file,) = (tmp_path / "out").glob("*_4f.gif")
    run("--again", file, "--outdir", tmp_path / "new")
    assert contents(tmp_path / "new") == contents(tmp_path / "out")
    run("--again", file, "--no_gif", "--outdir", tmp_path / "other")
    assert len(list((tmp_path / "other").glob("*.mp4"))) == 2


def test_other_flags_go_before_the_record(quick, make, run, tmp_path):
    asked = ["--seed", 5, "--no_spatial", "--preset", "paper", "--strength", 0.5]
    make("--prompt", "a cat", *asked, "--gif", "--no_picture")
    (file,) = (tmp_path / "out").glob("*_8f.gif")

    def again(*flags) -> dict:
        folder = tmp_path / "-".join(map(str, flags))
        run("--again", file, *flags, "--no_picture", "--outdir", folder)
        (record,) = folder.glob("*.json")
        return json.loads(record.read_text())

    before = again()
    assert (
        before["settings"]["cascade"]["strength"] == 0.5 and not before["settings"]["cascade"]["correction"]["spatial"]
    )
    denser = again("--scale", 4)
    assert denser["frames"] == [4, 8, 16] and denser["play_fps"] == [8, 16, 32] and denser["seed"] == 5
    denser["settings"]["cascade"]["scales"] = [2]
    assert denser["settings"] == before["settings"]
    assert again("--seed", 7)["seed"] == 7 and again("--prompt", "a dog")["prompt"] == "a dog"
    assert again("--spatial")["settings"]["cascade"]["correction"]["spatial"]
    direct = again("--method", "direct")["settings"]["cascade"]
    assert direct["method"] == "direct" and direct["strength"] == 0.8
    assert again("--scale", 1)["frames"] == [4]
    assert again("--save_fps", 4)["play_fps"] == [2, 4]


def test_settings_come_back_from_a_record_as_they_were(pipeline):
    family, config = pipeline.family, pipeline.config
    for asked in (
        {},
        {"preset": "anchored"},
        {"method": "freenoise"},
        {"method": "direct", "steps": 3},
        {"scales": ()},
        {"prediction": True, "strength": 0.25, "draw_seed": -(2**63)},
    ):
        before = settings_for(family, config, **asked)
        assert sample.again.build(Settings(), before.as_json()) == before
        assert settings_for(family, config, before) == before


def test_an_image_is_found_where_it_was_or_beside_the_file(make, run, tmp_path):
    photo, other = (np.full((30, 50, 3), value, np.uint8) for value in (60, 160))
    (tmp_path / "photos").mkdir()
    iio.imwrite(tmp_path / "photos/a.png", photo)
    make("--image", tmp_path / "photos/a.png", family="svd")
    (file,) = (tmp_path / "out").glob("*_8f.mp4")
    new = ["--again", file, "--outdir", tmp_path / "new"]
    run(*new)
    assert contents(tmp_path / "new") == contents(tmp_path / "out")
    iio.imwrite(tmp_path / "photos/a.png", other)
    said = run(*new, status=1)
    assert f"the image {tmp_path / 'photos/a.png'}, and" in said and "is another one now" in said and "--image" in said
    (tmp_path / "photos/a.png").unlink()
    assert "is not there any more; name the image to use: --image FILE" in run(*new, status=1)
    iio.imwrite(tmp_path / "out/a.png", photo)
    assert "1 of 1 videos are in" in run(*new)
    (tmp_path / "out/a.png").unlink()
    iio.imwrite(tmp_path / "b.png", other)
    run(*new, "--image", tmp_path / "b.png")
    assert len(list((tmp_path / "new").glob("*.json"))) == 2


def test_what_has_no_record_of_ours_is_told(quick, make, run, tmp_path):
    make("--prompt", "a")
    (file,) = (tmp_path / "out").glob("*_8f.mp4")
    stripped, plain, text = tmp_path / "stripped.mp4", tmp_path / "plain.png", tmp_path / "x.json"
    command = [video.get_ffmpeg_exe(), "-v", "error", "-i", file, "-map_metadata", "-1", "-c", "copy", stripped]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    Image.new("RGB", (4, 4)).save(plain)
    text.write_text("[" * 100_000)
    for path in (stripped, plain, text):
        assert f"{path} has no record of how it was made; give a video" in run("--again", path, status=1)
    (tmp_path / "x.txt").write_text("x")
    for path, reason in (("x.txt", "is no mp4, GIF, PNG or json"), ("none.mp4", "does not exist"), ("", "no regular")):
        assert reason in run("--again", tmp_path / path, status=1)


def test_another_checkpoint_is_told(quick, make, run, tiny, tmp_path):
    own = tmp_path / "own.safetensors"
    shutil.copy(tiny / "vc2.safetensors", own)
    make("--prompt", "a", "--ckpt", own)
    (file,) = (tmp_path / "out").glob("*_8f.mp4")
    shutil.copy(tiny / "lavie.safetensors", own)
    said = run("--again", file, status=1)
    assert "was made with another checkpoint than" in said and "name the one to use: --ckpt" in said
    own.unlink()
    assert f"made with the checkpoint {own}, which is not there; name it: --ckpt" in run("--again", file, status=1)
    assert "1 of 1 videos are in" in run("--again", file, "--ckpt", tiny / "vc2.safetensors")
    said = run("--again", file, "--ckpt", tiny / "vc1.safetensors", "--outdir", tmp_path / "new")
    assert "so this will be another video" in said


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory) -> dict:
    """The record of a video."""
    folder = tmp_path_factory.mktemp("finished")
    flags = [
        "--ckpt",
        tiny / "vc2.safetensors",
        "--steps",
        2,
        "--key_frames",
        4,
        "--scale",
        2,
        "--prompt",
        "a",
        "--gif",
    ]
    assert sample.main([*map(str, flags), "--device", "cpu", "--outdir", str(folder)]) == 0
    (record,) = folder.glob("*.json")
    return json.loads(record.read_text())


def change(record: dict, path: str, value) -> dict:
    record = json.loads(json.dumps(record))
    *outer, last = path.split(".")
    inner = record
    for name in outer:
        inner = inner[name]
    inner[last] = value
    return record


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("settings.steps", "x", "settings.steps='x' is str"),
        ("settings.steps", -1, "settings.steps=-1"),
        ("settings.guidance_scale", float("nan"), "guidance_scale=nan"),
        ("settings.cascade.scales", [2] * 15, "65,536"),
        ("settings.cascade.scales", [2] * 17, "17 items"),
        ("settings.magic", 1, "'magic' is no field that this version knows"),
        ("settings.cascade", [], "settings.cascade. is [], not an object"),
        ("settings.height", 1 << 40, "height"),
        ("settings.preset", "magic", "use one of paper, anchored"),
        ("seed", 1 << 70, "seed"),
        ("seed", True, "seed=True is bool"),
        ("prompt", "x" * 10_001, "10,001 letters"),
        ("prompt", 3, "prompt=3 is int"),
        ("play_fps", [1e5], "cannot play at"),
        ("play_fps", 8, "play_fps=8"),
        ("running.frame_chunk", -1, "frame_chunk=-1"),
        ("running.device", "toaster", None),
        ("device", "toaster", None),
        ("versions", {"torch": 1}, "torch=1 is int"),
        ("checkpoint", "//host/share/x.safetensors", "is not there; name it"),
        ("checkpoint", "/etc/passwd", "is neither a pickle nor"),
        ("checkpoint", "", "is not there"),
        ("image_sha256", "0" * 64, "name the image to use"),
    ],
)
def test_a_record_is_checked_as_flags_are(run, tmp_path, finished, path, value, reason):
    file = tmp_path / "x.json"
    file.write_text(json.dumps(change(finished, path, value)))
    if reason is None:
        assert "a whole vc2 checkpoint" in run("--again", file, "--check")
        return
    said = run("--again", file, status=1)
    assert reason in said and "Traceback" not in said and said.splitlines()[-1].startswith("sample.py: ")


def test_code_that_a_record_names_is_not_run(run, tmp_path, finished):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    changed = finished | {"family": str(tmp_path / "evil.py"), "ckpt": "x", "outdir": "/"}
    (tmp_path / "x.json").write_text(json.dumps(changed))
    run("--again", tmp_path / "x.json", "--check")
    assert not (tmp_path / "run").exists()


# --- what goes beside, names, paces


def test_key_frames_are_held_beside_the_dense_video(quick, make, tmp_path):
    stages = [np.full((n, 40, 300, 3), 0, np.uint8) for n in (2, 4, 8)]
    for stage in (stages[0], stages[2]):
        stage[:] = (np.arange(len(stage)) * (80 // len(stage)))[:, None, None, None]
    both = side_by_side(stages, [4, 8, 16])
    assert both.shape == (8, 64, 608, 3)
    assert (both[:, 24:, :300].reshape(8, -1) == np.repeat([0, 40], 4)[:, None]).all()
    assert (both[:, 24:, 308:].reshape(8, -1) == np.arange(0, 80, 10)[:, None]).all()
    make("--prompt", "a", "--no_picture")
    assert not list((tmp_path / "out").glob("*.png"))
    assert "was not asked for before; the video is made again" in make("--prompt", "a", "--side_by_side")
    assert "1 of 1 videos are in" in make("--prompt", "a", "--side_by_side")
    (file,) = (tmp_path / "out").glob("*_side_by_side.mp4")
    assert len(read_video(file)) == 8 and iio.immeta(file, plugin="FFMPEG")["fps"] == 16
    assert "--side_by_side does nothing at scale 1" in make("--prompt", "a", "--scale", 1, "--side_by_side", status=1)


def test_a_template_names_the_files(quick, make, run, tmp_path):
    make("--prompt", "A cat!", "--name", "{prompt}_{seed:03}_{frames}")
    names = {"a-cat_000_4.mp4", "a-cat_000_8.mp4", "a-cat_000_8.png", "a-cat_000_8.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {"index.html"}
    assert "1 of 1 videos are in" in make("--prompt", "A cat!", "--name", "{prompt}_{seed:03}_{frames}")
    make("--prompt", "A cat!", "--name", "x-{scale}-{steps}-{preset}-{key_frames}", "--outdir", tmp_path / "new")
    assert (tmp_path / "new/x-2-2-paper-4_4f.mp4").exists() and (tmp_path / "new/x-2-2-paper-4.json").exists()
    before = contents(tmp_path / "out")
    for flags, place in ((["--seed", 1], "a-cat.json"), (["--scale", 4], "a-cat_4.mp4")):
        name = place.partition(".")[0].replace("_4", "_{frames}")
        make("--prompt", "a cat", "--name", name)
        assert f"{place} is there already, and not this video" in make(
            "--prompt", "a cat", "--name", name, *flags, status=1
        )
    (tmp_path / "out/mine.json").write_text("{}")
    assert "mine.json is there already" in make("--prompt", "a", "--name", "mine", status=1)
    assert before.items() <= contents(tmp_path / "out").items()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--name", "{promt}"], "has {promt}; use prompt, seed, frames, digest"),
        (["--name", "{seed.__class__}"], "has {seed.__class__}; use"),
        (["--name", "{0}"], "has {0}; use"),
        (["--name", "{seed!r}"], "only whole numbers take a width"),
        (["--name", "{seed:999}"], "only whole numbers take a width"),
        (["--name", "{prompt:9}"], "only whole numbers take a width"),
        (["--name", "{seed"], "write {prompt}, {seed}"),
        (["--name", "a{{frames}}"], "has '{', which names of files cannot have"),
        (["--name", "a/b"], "has '/', which names of files cannot have"),
        (["--name", "a\nb"], "which names of files cannot have"),
        (["--name", ".{seed}"], "begins with a letter"),
        (["--name", ""], "begins with a letter"),
        (["--name", "x" * 201], "a name of 201 bytes"),
        (["--name", "{prompt}", "--num_videos", "2"], "two videos the name"),
        (["--name", "{seed}", "--num_videos", "10000000"], "without {digest}"),
        (["--save_fps", "1000"], "8 frames cannot play at 1000 a second; use --save_fps 0.2 to 480"),
        (["--save_fps", "60", "--gif"], "GIF plays at most 50"),
    ],
)
def test_bad_names_and_paces_are_told_first(make, monkeypatch, flags, reason):
    monkeypatch.setattr(sample, "load_described", lambda *_: pytest.fail("the networks were loaded"))
    assert reason in make("--prompt", "a", *flags, status=1).splitlines()[-1]


def test_the_densest_video_plays_as_fast_as_was_asked_and_how_fast_that_is_is_said(quick, make, tmp_path):
    said = make("--prompt", "a", "--save_fps", 30)
    assert "note: 8 frames at 30 fps play in 0.267 s, not 0.5 s: 1.88 times faster than the model is told" in said
    for frames, fps in ((4, 15), (8, 30)):
        (file,) = (tmp_path / "out").glob(f"*_{frames}f.mp4")
        assert iio.immeta(file, plugin="FFMPEG")["fps"] == fps
    assert "2.67 times slower than the model is told" in make("--prompt", "a", "--save_fps", 6, "--gif")
    assert "than their own pace, 8 key frames a second" in make(
        "--prompt", "a", "--save_fps", 6, "--check", family="lavie"
    )
    assert "than the model" not in make("--save_fps", 16, "--check")


def test_a_record_of_a_compiled_run_asks_for_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setattr("zerosmooth.settings.shutil.which", lambda name: None)
    made = {
        "checkpoint_digest": "x",
        "settings": Settings().as_json(),
        "seed": 0,
        "play_fps": [8.0],
        "running": {"compile": True},
    }
    (tmp_path / "a.json").write_text(json.dumps(made))
    assert again.read_record(tmp_path / "a.json").compiled


def test_another_scale_keeps_the_seconds(tmp_path):
    made = Record("x", Settings(cascade=Cascade(16, (2, 2))), (3.0, 6.0, 12.0), 0, checkpoint="vc2-small")
    said = {"prompt_file": None, "image": None, "fps": None, "ckpt": None}
    found = [again.defaults(tmp_path, made, Namespace(**said, scales=n))["save_fps"] for n in (None, 8, 1)]
    assert found == [12.0, 24.0, 3.0]


def test_what_another_family_knows_nothing_of_is_left_out():
    """Nobody asked it of this one."""
    svd, vc2 = FAMILIES["svd"], FAMILIES["vc2"]
    before = settings_for(svd, svd.config, motion_bucket_id=100, steps=7)
    settings = settings_for(vc2, vc2.config, before, frames=16)
    assert settings.steps == 7 and settings.motion_bucket_id == settings_for(vc2, vc2.config).motion_bucket_id
    with pytest.raises(ValueError, match="motion_bucket_id does nothing to vc2"):
        settings_for(vc2, vc2.config, before, motion_bucket_id=90)
