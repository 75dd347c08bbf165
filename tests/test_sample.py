"""The command as its user runs it, on the small checkpoint with few steps."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from zerosmooth.checkpoint import Checkpoint
from zerosmooth.cli.arguments import read_settings
from zerosmooth.families import FAMILIES
from zerosmooth.pipeline import NonFiniteError, Pipeline

from .conftest import TINY_FAMILIES

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
import sample  # noqa: E402

QUICK = ["--steps", "2", "--key_frames", "4", "--scale", "2", "--device", "cpu"]


def run(*arguments, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "sample.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One run, with every file it wrote."""
    folder = tmp_path_factory.mktemp("outputs")
    done = run(*QUICK, "--prompt", "a green square moving up", "--seed", "5", "--outdir", folder)
    assert done.returncode == 0, done.stderr
    (record,) = folder.glob("*.json")
    return record.with_suffix(""), done.stdout


def test_it_writes_videos_a_picture_and_a_record(made):
    stem, said = made
    facts = json.loads(stem.with_suffix(".json").read_text())
    assert stem.name.startswith("a-green-square-moving-up_seed5_")
    files = [*facts["files"], f"{stem.name}.json", "index.html"]
    assert sorted(files) == sorted(path.name for path in stem.parent.iterdir())
    assert "4 frames, 8 fps, 0.5 s" in said and "8 frames, 16 fps, 0.5 s" in said and "denser, not longer" in said
    assert facts["frames"] == [4, 8] and facts["play_fps"] == [8, 16] and facts["settings"]["cascade"]["scales"] == [2]
    assert (
        facts["seed"] == 5
        and facts["settings"]["steps"] == 2
        and facts["versions"]["torch"]
        and len(facts["checkpoint_digest"]) == 64
    )


def test_the_page_shows_the_videos_and_says_how_they_were_made(made):
    stem, _ = made
    (text,) = re.findall(r'class="entry".*?>(.*)</script>', (stem.parent / "index.html").read_text())
    entry, record = json.loads(text), json.loads(stem.with_suffix(".json").read_text())
    assert entry["title"] == "a green square moving up"
    assert entry["command"] == f"python sample.py --again {stem}_{record['frames'][-1]}f.mp4"
    assert entry["settings"]["steps"] == 2 and entry["settings"]["preset"] == "anchored" and entry["cell"] == [64, 64]
    shown = [(panel["frames"], panel["fps"], panel["file"]) for panel in entry["panels"]]
    assert shown == [(4, 8, f"{stem.name}_4f.mp4"), (8, 16, f"{stem.name}_8f.mp4")]


def test_mp4_is_h264_that_browsers_play(made):
    stem, _ = made
    for frames, fps in ((4, 8), (8, 16)):
        path = stem.with_name(f"{stem.name}_{frames}f.mp4")
        video, meta = iio.imread(path), iio.immeta(path, plugin="FFMPEG")
        assert len(video) == frames and video.shape[1:3] == (256, 256)
        assert meta["codec"] == "h264" and meta["pix_fmt"].startswith("yuv420p") and meta["fps"] == fps


def test_a_finished_result_is_not_made_again(made):
    folder = made[0].parent
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = run(*QUICK, "--prompt", "a green square moving up", "--seed", "5", "--outdir", folder)
    assert again.returncode == 0 and "1 of 1 videos are in" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_other_settings_are_other_files(made):
    folder = made[0].parent
    before = set(folder.iterdir())
    assert (
        run(*QUICK, "--prompt", "a green square moving up", "--seed", "5", "--eta", "0", "--outdir", folder).returncode
        == 0
    )
    assert before < set(folder.iterdir())


def test_memory_settings_do_not_make_a_result_again(made):
    same = [*QUICK, "--prompt", "a green square moving up", "--seed", "5", "--outdir", made[0].parent]
    assert "1 of 1 videos are in" in run(*same, "--offload").stdout
    assert "videos are in" not in run(*same, "--save_fps", "4").stdout


def test_prompt_files_gifs_and_seeds(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# mine\n\na red circle moving left\na red circle moving left\n  a blue square moving up  \n")
    done = run(*QUICK, "--prompt_file", prompts, "--num_videos", 2, "--gif", "--outdir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*.json"))) == 4
    gif = next((tmp_path / "out").glob("*_8f.gif"))
    assert sum(iio.immeta(gif, index=i)["duration"] for i in range(len(iio.imread(gif)))) == 500  # milliseconds


@pytest.mark.parametrize("method", ["direct", "windowed"])
def test_baselines_share_the_base_video(tmp_path, made, method):
    stem, _ = made
    done = run(*QUICK, "--prompt", "a green square moving up", "--seed", "5", "--method", method, "--outdir", tmp_path)
    assert done.returncode == 0, done.stderr
    (other,) = tmp_path.glob("*.json")
    for frames, same in ((4, True), (8, False)):
        a, b = (iio.imread(path.with_name(f"{path.stem}_{frames}f.mp4")) for path in (stem, other))
        assert np.array_equal(a, b) is same


@pytest.mark.parametrize("setting", [[], ["--offload", "--scale", "1"]])
def test_check_says_what_a_file_is(setting):
    done = run("--check", *setting)
    assert done.returncode == 0, done.stderr
    for text in ("a whole vc2 checkpoint", "M parameters", "memory: weights", "TFLOP a step", "to decode"):
        assert text in done.stdout


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, suffix in enumerate(("png", "jpg")):
        iio.imwrite(folder / f"photo{i}.{suffix}", np.full((30, 50, 3), 60 + 100 * i, np.uint8))
    return folder


def test_images_become_videos(tmp_path, tiny, photos):
    command = ["--ckpt", tiny / "svd.safetensors", "--image", photos, "--scale", "2", "--steps", "2"]
    memory = ["--sequential_guidance", "--frame_chunk", "2", "--decode_chunk_size", "4", "--offload"]
    done = run(*command, *memory, "--outdir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "8 frames, 7 fps, 1.14 s" in done.stdout and "16 frames, 14 fps, 1.14 s" in done.stdout
    records = {json.loads(path.read_text())["image"]: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert records.keys() == {"photo0.png", "photo1.jpg"}
    record = records["photo1.jpg"]
    settings = record["settings"]
    assert settings["motion_bucket_id"] == 180 and settings["resize"] == "crop" and settings["eta"] == 0
    assert record["image_sha256"] == hashlib.sha256((photos / "photo1.jpg").read_bytes()).hexdigest()
    again = run(*command, "--decode_chunk_size", "4", "--outdir", tmp_path)
    assert "2 of 2 videos are in" in again.stdout  # settings of memory make no other result
    assert settings["decode_chunk_size"] == 4  # but this one, where the decoder mixes frames
    one = run(*command, "--outdir", tmp_path, "--image", photos / "photo0.png", "--resize", "pad")
    assert one.returncode == 0 and len(list(tmp_path.glob("*.json"))) == 3


def test_lavie_makes_videos_from_prompts(tmp_path, tiny):
    done = run(
        "--ckpt", tiny / "lavie.safetensors", "--prompt", "x", "--scale", "2", "--steps", "3", "--outdir", tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "does not divide" not in done.stdout and len(list(tmp_path.glob("*.mp4"))) == 2


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_check_knows_every_family(tiny, family):
    done = run("--check", "--ckpt", tiny / f"{family}.safetensors", "--sequential_guidance", "--frame_chunk", "2")
    assert f"a whole {family} checkpoint" in done.stdout, done.stderr


def bad_images(tiny, photos):
    svd = ["--ckpt", tiny / "svd.safetensors"]
    (tiny / "cut.png").write_bytes((photos / "photo0.png").read_bytes()[:60])
    return [
        (svd, "add --image"),
        ([*svd, "--prompt", "x"], "--prompt does not fit"),
        ([*svd, "--image", photos, "--negative_prompt", "x"], "negative_prompt does nothing to svd"),
        ([*svd, "--image", tiny / "none.png"], "does not exist"),
        ([*svd, "--image", tiny / "cut.png"], "cannot be read"),
        ([*svd, "--image", tiny / "svd.safetensors"], "cannot be read"),
        ([*svd, "--image", tiny], "cannot be read"),
        ([*svd, "--image", ROOT / "zerosmooth"], "has no images"),
        ([*svd, "--image", photos, "--eta", "1"], "eta=1.0; this model's sampler adds no noise"),
        ([*svd, "--image", photos, "--motion_bucket_id", "-1"], "motion_bucket_id=-1; use 0 to 255"),
        ([*svd, "--image", photos, "--noise_aug_strength", "2"], "noise_aug_strength=2.0"),
        ([*svd, "--image", photos, "--frame_chunk", "0"], "frame_chunk=0"),
        (["--check", "--frame_chunk", "-1"], "frame_chunk=-1"),
        (["--check", "--decode_chunk_size", "0"], "decode_chunk_size=0"),
        (["--image", photos], "--image does not fit"),
        (["--motion_bucket_id", "100"], "motion_bucket_id does nothing to vc2"),
        (["--resize", "pad"], "resize does nothing to vc2"),
        (["--prompt", "a", "--prompt_file", "b"], "exclude each other"),
    ]


def bad_inputs(tmp_path):
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "half.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    return [
        (["--prompt_file", tmp_path / "none.txt"], "none.txt does not exist"),
        (["--prompt_file", tmp_path / "empty.txt"], "has no prompts"),
        (["--key_frames", "17"], "use 2 to 16"),
        (["--key_frames", "1"], "use 2 to 16"),
        (["--height", "60"], "height 60 is not a multiple of 16 pixels; 64 is"),
        (["--steps", "0"], "steps=0"),
        (["--eta", "2"], "eta=2.0"),
        (["--strength", "-1"], "strength=-1.0"),
        (["--overlap", "16"], "overlap=16"),
        (["--ckpt", tmp_path / "none.safetensors"], "none.safetensors does not exist"),
        (["--ckpt", "no-such-name"], "vc2-small"),
        (["--ckpt", tmp_path], "is a folder"),
        (["--ckpt", tmp_path / "half.safetensors"], "cut off"),
        (["--device", "cuda:99"], "CUDA devices"),
        (["--device", "toaster"], "is no device"),
        (["--outdir", tmp_path / "file" / "x"], "file"),
        (["--num_videos", "0"], "--num_videos"),
        (["--save_fps", "0"], "cannot play at 0 a second"),
        (["--save_fps", "nan"], "cannot play at nan a second"),
        (["--fps", "80000"], "fps=80000; use 1 to 1000"),
        (["--device", "meta"], "does not work with this torch"),
        (["--method", "direct", "--no_spatial"], "correction does nothing to direct"),
        (["--preset", "anchored", "--kv_operator", "S"], "kv_operator does nothing where no hidden states"),
        (["--preset", "magic"], "use one of paper, anchored"),
        (["--guidance_scale", "nan"], "guidance_scale=nan"),
        (["--gif", "--scale", "8"], "GIF plays at most 50"),
        (["--fps", "0"], "fps=0"),
    ]


def test_bad_input_is_told_before_anything_is_made(tmp_path, tiny, photos, monkeypatch, capsys):
    monkeypatch.setattr(sample, "load_described", lambda *_: pytest.fail("the networks were loaded"))
    for arguments, reason in bad_inputs(tmp_path) + bad_images(tiny, photos):
        out = [] if "--outdir" in arguments else ["--outdir", str(tmp_path / "out")]
        assert sample.main([*map(str, arguments), *out]) == 1, arguments
        assert reason in (said := capsys.readouterr().err), said
        assert said.count("\n") == 1  # one sentence, no traceback
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee the manual"),
        torch.OutOfMemoryError(""),
        RuntimeError("CUDA error: out of memory\nSee the manual"),  # the driver's, a torch.AcceleratorError
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["allocator", "silent", "driver", "cublas", "cpu"],
)
def test_running_out_of_memory_tells_which_settings_take_less(error, tiny, tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(Pipeline, "sample", fails)
    arguments = ["--ckpt", tiny / "vc2.safetensors", "--scale", "1", "--prompt", "a", "--outdir", tmp_path]
    assert sample.main([*map(str, arguments)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("sample.py: the device is out of memory") and "try --offload" in said
    assert str(error).partition("\n")[0] in said and "manual" not in said


def test_a_video_that_turns_nan_does_not_keep_the_others_back(tmp_path, tiny, monkeypatch, capsys):
    whole = Pipeline.sample

    def fails_once(pipeline, *args, seeds, **settings):
        if seeds == 0:
            raise NonFiniteError("step 1 made NaN")
        return whole(pipeline, *args, seeds=seeds, **settings)

    monkeypatch.setattr(Pipeline, "sample", fails_once)
    arguments = [
        "--ckpt",
        tiny / "vc2.safetensors",
        "--num_videos",
        "2",
        "--steps",
        "1",
        "--scale",
        "1",
        "--prompt",
        "a",
    ]
    assert sample.main([*map(str, arguments), "--outdir", str(tmp_path)]) == 1
    assert "no video of 'a', seed 0: step 1 made NaN" in capsys.readouterr().err
    assert [json.loads(path.read_text())["seed"] for path in tmp_path.glob("*.json")] == [1]


def test_a_scale_that_is_not_offered_is_refused():
    done = run("--scale", "3")
    assert done.returncode == 2 and "invalid choice: 3" in done.stderr


def test_interrupting_leaves_finished_videos_whole(tmp_path):
    command = [sys.executable, str(ROOT / "sample.py"), *QUICK, "--num_videos", "500", "--outdir", str(tmp_path)]
    heed = partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # a shell's background jobs ignore it, and hand that on
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed
    )
    for _ in range(600):
        if list(tmp_path.glob("*.json")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped" in said
    records = list(tmp_path.glob("*.json"))
    assert records
    for record in records:
        for name in json.loads(record.read_text())["files"]:
            assert len(iio.imread(tmp_path / name))
    assert not list(tmp_path.glob("*.part*")) and not list(tmp_path.glob(".*"))


def test_the_installed_package_brings_its_files(tmp_path):
    """From another folder, as `pip install` left it."""
    code = "import zerosmooth, weights_convert; zerosmooth.load().networks.encoder.encode(['a'])"
    try:
        version("zerosmooth")
    except PackageNotFoundError:
        pytest.skip("zerosmooth is not installed")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("family", "steps", "said"),
    [
        ("vc2", 30, "note: 31 steps are taken, not 30"),
        ("lavie", 400, "note: 400 steps begin at timestep 799 of 1000"),
        ("lavie", 30, None),
        ("vc2", 50, None),
        ("svd", 30, None),
    ],
)
def test_steps_that_do_not_come_out_even_are_told(family, steps, said, capsys):
    family, args = FAMILIES[family], sample.parse(["--steps", str(steps), "--device", "cpu"])
    checkpoint = Checkpoint(Path("x"), family, family.config, {}, "F32", 0, "", "", "", 0)
    read_settings(args, checkpoint)
    out = capsys.readouterr().out
    assert out.startswith(said) if said else out == ""
