"""Runs, records, prompts and calls that go wrong: never in silence, never with a wrong reason."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import zerosmooth
from zerosmooth import Running, Settings, Subject
from zerosmooth.fields import UserError
from zerosmooth.pipeline import Pipeline
from zerosmooth.settings import settings_for
from zerosmooth_cli.arguments import read_prompts
from zerosmooth_cli.command import run_command
from zerosmooth_cli.results import Result

from .command import QUICK, ROOT, contents, make, quick, run, sample
from .fuzz_runs import fuzz
from .kills import MOMENTS, Case, cases

# --- results


def of_another(path: Path) -> None:
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 9'))


DAMAGES = {
    "video": (".gif", lambda path: path.write_bytes(b"")),
    "picture": (".png", lambda path: path.write_bytes(path.read_bytes()[:-40])),
    "gone": (".gif", Path.unlink),
    "not JSON": (".json", lambda path: path.write_text("[" * 100_000)),
    "no object": (".json", lambda path: path.write_text("null")),
    "no files": (".json", lambda path: path.write_text('{"files": []}')),
    "another's": (".json", of_another),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_made_again_and_said(tiny, tmp_path, monkeypatch, damage):
    sampled = quick(monkeypatch)
    flags = ["--prompt", "a", "--set", "gif=true", "page=false", "--outdir", tmp_path]
    make(tiny, *flags)
    before, (suffix, work) = contents(tmp_path), DAMAGES[damage]
    path = sorted(tmp_path.glob(f"*{suffix}"))[-1]
    work(path)
    said = make(tiny, *flags)
    assert f"{path} is damaged or gone; the video is made again" in said and "already" not in said
    assert contents(tmp_path) == before and len(sampled) == 2
    assert "1 of 1 videos are in" in make(tiny, *flags)


def test_a_folder_where_a_file_belongs_is_told_before_sampling(tiny, tmp_path, monkeypatch):
    sampled, flags = quick(monkeypatch), ["--set", "gif=true", "--outdir", tmp_path]
    make(tiny, *flags)
    (video,) = tmp_path.glob("*_8f.gif")
    video.unlink()
    video.mkdir()
    assert f"{video} is there already, and not this video" in make(tiny, *flags, status=1)
    assert len(sampled) == 1


def test_what_dead_processes_left_is_removed(tiny, tmp_path, monkeypatch):
    quick(monkeypatch)
    left = tmp_path / ".a_seed0_0123_8f.4000000.part.mp4"
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    make(tiny, "--set", "gif=true", "--outdir", tmp_path)
    assert not left.exists()


def test_ten_million_videos_begin_with_the_first(tiny, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    lacks, looked = Result.lacks, []
    monkeypatch.setattr(Result, "lacks", lambda self: looked.append(self.seed) or lacks(self))
    monkeypatch.setattr(Pipeline, "sample", interrupted)
    flags = ["--num_videos", 10_000_000, "--outdir", tmp_path]
    assert "stopped" in make(tiny, *flags, status=130)
    assert set(looked) == {0}


def test_a_large_checkpoint_is_not_read_again_to_find_nothing_to_do(tiny, tmp_path, monkeypatch):
    quick(monkeypatch)
    monkeypatch.setattr(sample.arguments, "READ", 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    flags = ["--set", "gif=true", "--outdir", tmp_path / "out"]
    make(tiny, *flags)
    size, read, opened = (tiny / "vc2.safetensors").stat().st_size, [], Path.open

    class Counting(io.BufferedReader):
        def read(self, n=-1):
            read.append(len(data := super().read(n)))
            return data

    def counting(path, *arguments, **options):
        file = opened(path, *arguments, **options)
        return Counting(file.detach()) if path.suffix == ".safetensors" else file

    monkeypatch.setattr(Path, "open", counting)
    make(tiny, *flags)
    assert 0 < sum(read) < size / 2


def zero_the_end(content: bytes) -> bytes:
    return content[: len(content) * 6 // 10] + bytes(len(content) - len(content) * 6 // 10)


def flip_a_bit(content: bytes) -> bytes:
    at = len(content) * 3 // 4
    return content[:at] + bytes([content[at] ^ 64]) + content[at + 1 :]


@pytest.mark.parametrize("damage", [zero_the_end, flip_a_bit, lambda content: content[:-1]])
@pytest.mark.parametrize("read", [1000, 10**9])
def test_a_damaged_checkpoint_makes_nothing_and_has_made_nothing(tiny, tmp_path, monkeypatch,
                                                                damage, read):
    sampled = quick(monkeypatch)
    monkeypatch.setattr(sample.arguments, "READ", read)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file, whole = tmp_path / "own.safetensors", (tiny / "vc2.safetensors").read_bytes()
    flags = ["--ckpt", file, *QUICK, "gif=true", "page=false", "--outdir", tmp_path / "out"]
    file.write_bytes(whole)
    run(*flags)
    made = contents(tmp_path / "out")
    for more in ([], ["--seed", 7], ["--check"], ["--again", min(tmp_path.glob("out/*.gif"))]):
        file.write_bytes(damage(whole))
        said = run(*flags, *more, status=1).splitlines()[-1]
        assert re.match(r"sample.py: .*own.safetensors is (damaged: it has other tensors than were "
                        "written to it|cut off or damaged).*; download or convert it again", said)
        with pytest.raises(zerosmooth.CheckpointError, match="damaged"):
            zerosmooth.load(file)
    assert len(sampled) == 1 and contents(tmp_path / "out") == made
    file.write_bytes(whole)
    assert "1 of 1 videos are in" in run(*flags)


# --- records of an evaluation


class Mean(torch.nn.Module):
    def forward(self, x):
        return x.mean(dim=[2, 3, 4]).softmax(-1)


@pytest.fixture
def experiment(tiny, tmp_path, capsys):
    """Evaluate one prompt: experiment(*arguments, status=0) -> what that said."""
    from evaluation import __main__ as evaluation
    (tmp_path / "prompts.txt").write_text("a cat\n")
    torch.jit.script(Mean()).save(str(tmp_path / "mean.pt"))

    def run(*arguments, status=0):
        flags = ["--ckpt", tiny / "vc2.safetensors", "--prompt_file", tmp_path / "prompts.txt",
                 "--rows", "direct", "--steps", 1, "--scale", 2, "--device", "cpu", "--show", 1,
                 "--classifier", tmp_path / "mean.pt", "--outdir", tmp_path / "out"]
        assert evaluation.main([*map(str, flags), *map(str, arguments)]) == status
        return "".join(capsys.readouterr())

    return run


@pytest.mark.long
def test_damaged_files_of_an_evaluation_are_made_again_and_said(experiment, tmp_path):
    experiment()
    for suffix in (".json", ".features", ".frames"):
        (path,) = (tmp_path / "out/videos").glob(f"*{suffix}")
        whole = path.read_bytes()
        for content in (b"", b"null", b'{"row": "direct"}', whole[: len(whole) // 2]):
            path.write_bytes(content)
            assert f"{path} is damaged; the video is made again" in experiment()
            assert path.read_bytes() == whole or suffix == ".json"
        path.unlink()
        path.mkdir()
        assert f"{path} is a folder" in experiment(status=1)
        path.rmdir()
        path.write_bytes(whole)


@pytest.mark.long
def test_an_evaluation_says_what_goes_wrong_as_sampling_does(experiment):
    assert "tokens of 'blue blue" in experiment("--set", f"negative_prompt={'blue ' * 40}")
    assert "use 1 to 1000000" in experiment("--num_videos", 10_000_000, status=1)
    assert "is a file; name a folder" in experiment("--outdir", __file__, status=1)


# --- prompts


def prompts(tmp_path, content: bytes) -> list[str]:
    (tmp_path / "prompts").write_bytes(content)
    return read_prompts(tmp_path / "prompts")


def test_a_prompt_ends_where_a_line_ends(tmp_path):
    text = "a\u2028b\nc\x0cd\x85e\r\n# no\rf\x0b\n\x1c\u2029\n"
    assert prompts(tmp_path, text.encode()) == ["a\u2028b", "c\x0cd\x85e", "f"]


@pytest.mark.parametrize(("content", "reason"), [
    ("a cat".encode("utf-16-le"), "NULs in it, as UTF-16"),
    ("a cat".encode("utf-16"), "not UTF-8 text"),
    (b"# nothing\n", "has no prompts"),
    (b"x" * 64_000_001, "more than 64 MB"),
])
def test_what_is_no_list_of_prompts_is_refused(tmp_path, content, reason):
    with pytest.raises(UserError, match=reason):
        prompts(tmp_path, content)


def test_a_prompt_file_that_the_system_does_not_read_is_a_mistake_of_the_user(monkeypatch):
    with pytest.raises(UserError, match="error"):
        read_prompts(Path("/proc/self/mem"))


def test_prompts_may_come_through_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("a\nb\n"))
    writer.start()
    assert read_prompts(tmp_path / "pipe") == ["a", "b"]
    writer.join()


def test_what_the_text_encoder_does_not_see_is_said(tiny, tmp_path, monkeypatch):
    quick(monkeypatch)
    flags = ["--set", "gif=true", f"negative_prompt={'blue ' * 40}", "--outdir", tmp_path]
    assert "tokens of 'blue blue" in make(tiny, *flags)


# --- mistakes on the command line


@pytest.fixture(scope="module")
def given(tiny, tmp_path_factory) -> dict[str, Path]:
    """Files that the flags of MISTAKES name."""
    folder = tmp_path_factory.mktemp("given")
    Image.new("RGB", (50, 30)).save(folder / "a.png")
    (folder / "cut").mkdir()
    (folder / "cut/a.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "half.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (folder / "link").symlink_to(folder / "gone")
    return {"here": folder, "svd": f"--ckpt {tiny}/svd.safetensors",
            "lavie": f"--ckpt {tiny}/lavie.safetensors"}


MISTAKES = [
    ("--ckpt none.safetensors", "none.safetensors does not exist; give"),
    ("--ckpt vc2-smal", "vc2-smal does not exist; did you mean vc2-small?"),
    ("--ckpt no-such-name", "vc2-small"),
    ("--ckpt {here}", "is a folder"),
    ("--ckpt {here}/half.safetensors", "cut off"),
    ("--family none.py", "--family none.py cannot be loaded"),
    ("--family ./examples/wan", "it is neither a file ending in .py nor a module's name"),
    ("--family {here}/a.png", "it is neither a file ending in .py nor a module's name"),
    ("--device cuda:99", "CUDA devices"),
    ("--device toaster", "is no device"),
    ("--device meta", "does not work with this torch"),
    ("--set device=toaster", "is no device"),
    ("--outdir {here}/a.png", "is a file; name a folder"),
    ("--outdir {here}/a.png/x", "a.png"),
    ("--outdir {here}/link", "gone, which is not there; make that folder, or remove the link"),
    ("--outdir {here}/link/x", "gone, which is not there"),
    # subjects
    ("--prompt_file none.txt", "none.txt does not exist"),
    ("--prompt_file {here}", "is a folder"),
    ("--prompt a --prompt_file b", "exclude each other"),
    (f"--prompt {'x' * 10_001}", "a prompt has 10,001 letters"),
    ("--prompt caf\udce9", "a prompt is no whole Unicode at '\\udce9'; write it in UTF-8"),
    ("--set negative_prompt=caf\udce9", "negative_prompt is no whole Unicode"),
    ("--image {here}/a.png", "--image does not fit"),
    ("{svd}", "add --image"),
    ("{svd} --prompt ''", "--prompt does not fit"),
    ("{svd} --image none.png", "does not exist"),
    ("{svd} --image {here}/cut", "cannot be read"),
    ("{svd} --image {here}/half.safetensors", "no image that can be read"),
    (f"{{svd}} --image {ROOT}/zerosmooth", "has no images"),
    ("--num_videos 0", "--num_videos=0"),
    (f"--num_videos {'9' * 250}", "--num_videos=(a number of 831 bits); use 1 to"),
    (f"--seed {'9' * 250}", "--seed=(a number of 831 bits); use"),
    ("--seed 9223372036854775807 --num_videos 2", "--seed=9223372036854775808; use"),
    # values
    ("--scale 3", "scale=3; use one of 1, 2, 4, 8"),
    ("--preset magic", "use one of paper, anchored"),
    ("--preset anchord", "preset='anchord'; did you mean anchored?"),
    ("--method windowd", "method='windowd'; did you mean windowed?"),
    ("--method magic", "use one of zerosmooth, "),
    ("--steps 0", "steps=0; use 1 to 1000"),
    ("--guidance_scale nan", "guidance_scale=nan"),
    ("--guidance_scale 1e39", "guidance_scale=1e+39; use -1000 to 1000"),
    ("--fps 0", "fps=0; use 1 to 1000"),
    ("--height 1600000", "height=1600000; use 1 to 8192"),
    ("--height 61", "height 61 is not a multiple of 4 pixels; 60 is"),
    ("--set key_frames=9", "use 2 to 8"),
    ("--set key_frames=1", "use 2 to 8"),
    ("--set overlap=4", "overlap=4 in windows of 4 frames; use 0 to 3"),
    ("--set eta=2", "eta=2.0"),
    ("--set strength=-1", "strength=-1.0; use 0 to 1"),
    ("--set frame_chunk=0", "frame_chunk=0; use 1 to"),
    (f"--set decode_chunk_size={'9' * 40}", "use 1 to 1048576"),
    ("--set dtype=int8", "dtype='int8'; use float32 or"),
    ("--set save_fps=0", "8 frames cannot play at 0 a second; use --set save_fps=0.2 to 480"),
    ("--set save_fps=nan", "cannot play at nan a second"),
    ("--set save_fps=60 gif=true", "GIF plays at most 50"),
    ("{svd} --image {here}/a.png --set eta=1", "eta=1.0; this model's sampler adds no noise"),
    ("{svd} --image {here}/a.png --set motion_bucket_id=-1", "motion_bucket_id=-1; use 0 to 255"),
    ("--set spatial=yes", "spatial='yes'; true or false is needed"),
    ("--set draw_seed=0.5", "draw_seed='0.5'; a whole number is needed"),
    (f"--set key_frames={'9' * 5000}", "; a whole number is needed"),
    ("--set eta=", "eta=''; a number is needed"),
    ("--set eta", "--set eta: write eta=VALUE"),
    ("--set jion=0.6", "there is no setting 'jion'; did you mean join?"),
    ("--set frames=8", "there is no setting 'frames'; did you mean"),
    ("--set seed=3", "seed is no setting but a flag: --seed"),
    ("--set zzz=1", "there is no setting 'zzz'; use one of height, width, "),
    # what does nothing
    ("--scale 1 --set strength=0.8", "strength does nothing at scale 1"),
    ("--scale 1 --set color_correction=true", "color_correction does nothing at scale 1"),
    ("--scale 1 --set side_by_side=true", "side_by_side does nothing at scale 1"),
    ("--scale 1 --set densest_only=true", "densest_only does nothing at scale 1"),
    ("--set spatial=false kv_operator=S", "kv_operator does nothing where spatial"),
    ("--set kv_operator=S a1_probability=0.5", "a1_probability does nothing to kv_operator S"),
    ("--set strength=0 spatial=false", "spatial does nothing at strength=0"),
    ("--set spatial=false temporal=false strength=1", "strength does nothing where no hidden"),
    ("--preset anchored --set kv_operator=S", "kv_operator does nothing where no hidden states"),
    ("--method direct --set spatial=false", "spatial does nothing to direct"),
    ("--method direct --set reuse=2", "reuse does nothing to direct"),
    ("--method ddnm --preset anchored", "preset does nothing a baseline can use"),
    ("--method freenoise --preset fast", "preset does nothing a baseline can use"),
    ("--preset anchored --set join=0.01", "join does nothing in 2 steps, of which it is less"),
    ("--steps 1 --set reuse=2", "reuse does nothing in 1 steps of all stages"),
    ("--guidance_scale 1 --set negative_prompt=x", "negative_prompt does nothing without guidance"),
    ("--guidance_scale 1 --set sequential_guidance=true", "sequential_guidance does nothing"),
    ("--set offload=true", "offload does nothing on the CPU"),
    ("--set motion_bucket_id=100", "motion_bucket_id does nothing to vc2"),
    ("--set resize=pad", "resize does nothing to vc2"),
    ("{svd} --image {here}/a.png --set negative_prompt=x", "negative_prompt does nothing to svd"),
    ("{lavie} --fps 10 --set save_fps=8", "fps does nothing beside save_fps: lavie is not told"),
    # names
    ("--set name={{promt}}", "name={promt}: 'promt'; write {prompt}"),
    ("--set name={{0}}", "write {prompt}"),
    ("--set name={{seed", "write {prompt}"),
    ("--set name={{seed.x}}", "write {prompt}"),
    ("--set name={{seed.__class__}}", "none of them <>"),
    ("--set name=a/b", "none of them <>"),
    ("--set name='a\nb'", "none of them <>"),
    ("--set name=.{{seed}}", "begins with a letter"),
    ("--set name=", "begins with a letter"),
    ("--set name=a\udcff", "a name begins"),
    (f"--set name={'x' * 201}", "up to 200 bytes"),
    ("--num_videos 2 --set name={{prompt}}", "two videos the name"),
    ("--num_videos 40 --set name=x{{digest:.1}}", "two videos the name"),
]


@pytest.mark.parametrize(("flags", "reason"), MISTAKES, ids=[flags[:50] for flags, _ in MISTAKES])
def test_a_mistake_is_told_in_one_line_before_anything_is_made(
        tiny, tmp_path, monkeypatch, given, flags, reason):
    monkeypatch.setattr(sample.arguments, "loaded",
                        lambda *_, **__: pytest.fail("networks were loaded"))
    flags = shlex.split(flags.format(**given))
    said = make(tiny, "--outdir", tmp_path / "out", *flags, status=1).splitlines()[-1]
    assert reason in said and said.startswith("sample.py: ")
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("flag", ["--ckpt", "--image", "--outdir", "--prompt_file"])
def test_an_empty_path_is_not_the_working_directory(tiny, flag):
    assert "it is empty" in make(tiny, flag, "", status=2)


@pytest.mark.parametrize(("flags", "reason"), [
    (["--promt", "x"], "unrecognized arguments: --promt x; did you mean --prompt?"),
    (["--overlap=2"], "write --set overlap=VALUE"),
    (["--xyzzy"], "unrecognized arguments: --xyzzy; --help lists all"),
    (["--seed", "1,2,3"], "'1,2,3' is no whole number; --seed N --num_videos M"),
])
def test_a_flag_that_is_meant_is_named(tiny, flags, reason):
    said = make(tiny, *flags, status=2)
    assert reason in said and len(said.splitlines()) == 2


@pytest.mark.parametrize(("environment", "reason"), [
    ({"WORLD_SIZE": "abc"}, "WORLD_SIZE='abc' in the environment is no number; unset it"),
    ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 without RANK and LOCAL_RANK; start several processes by"),
    ({"RANK": "x"}, "RANK='x' in the environment is no number"),
    ({"RANK": "1"}, "RANK=1 of WORLD_SIZE=None"),
    ({"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"}, "RANK=2 of WORLD_SIZE=2"),
    ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "the 2 processes do not meet"),
])
@pytest.mark.parametrize("command", ["sample", "evaluation"])
def test_processes_that_do_not_fit_together_are_told(tiny, tmp_path, monkeypatch, capsys,
                                                    environment, reason, command):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if command == "sample":
        assert reason in make(tiny, "--outdir", tmp_path / "out", status=1)
    else:
        from evaluation import __main__ as evaluation
        assert evaluation.main(["--outdir", str(tmp_path / "out")]) == 1
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("steps", "said"), [
    (48, None), (50, None), (20, None), (25, None),
    (10, "10 steps begin at timestep 901 of 1000, where noise is not yet all; more steps would"),
    (2, "2 steps begin at timestep 501 of 1000, where noise is not yet all; more steps would"),
    (1, "1 steps begin at timestep 1 of 1000")])
def test_what_is_said_of_steps_is_true_of_their_number(tiny, monkeypatch, steps, said):
    monkeypatch.setattr("zerosmooth_cli.check.report", lambda *_: [])
    got = make(tiny, "--check", "--steps", steps)
    assert "divisor" not in got
    assert "begin at" not in got if said is None else said in got


def test_small_networks_have_a_rate(tiny):
    said = make(tiny, "--check", "--steps", 50)
    numbers = re.findall(r"([\d.e-]+) TFLOP", said)
    assert len(numbers) == 2 and all(float(number) > 0 for number in numbers)


# --- mistakes in Python


@pytest.mark.parametrize(("call", "reason"), [
    (lambda p: p.sample(3), "3 is no subject"),
    (lambda p: p.sample([None]), "None is no subject"),
    (lambda p: p.sample(b"a"), "is no subject"),
    (lambda p: p.sample(Path("a.png")), "is no subject"),
    (lambda p: p.sample([]), "nothing to make"),
    (lambda p: p.sample(Subject(3)), "a prompt=3 is int"),
    (lambda p: p.sample("x" * 10_001), "10,001 letters"),
    (lambda p: p.sample("caf\udce9"), "a prompt is no whole Unicode"),
    (lambda p: p.sample("a", negative_prompt="\ud800"), "negative_prompt is no whole Unicode"),
    (lambda p: p.sample(np.zeros((20, 20, 3), np.uint8)), "from prompt, not from image"),
    (lambda p: p.sample("a", seeds=1.5), "seeds=1.5; whole numbers"),
    (lambda p: p.sample("a", seeds=None), "seeds=None; whole numbers"),
    (lambda p: p.sample("a", seeds="12"), "seeds='12'; whole numbers"),
    (lambda p: p.sample("a", seeds=[1, 2]), "2 seeds for 1 videos"),
    (lambda p: p.sample("a", seeds=1 << 63), "seeds=9223372036854775808; use"),
    (lambda p: p.sample("a", seeds=10**5000), "a number of 16610 bits"),
    (lambda p: p.sample("a", {"steps": 2}), "settings={'steps': 2} is dict; Settings is needed"),
    (lambda p: p.sample("a", p.settings(), steps=2), "steps beside settings; use settings"),
    (lambda p: p.sample("a", running=None), "running=None is NoneType; Running is needed"),
    (lambda p: p.sample("a", image_noise=torch.zeros(1)), "image_noise does nothing"),
    (lambda p: p.sample("a", progress=None), "progress=None; a function"),
    (lambda p: p.sample("a", preview=1), "preview=1; a function"),
    (lambda p: p.sample("a", noise=torch.zeros(2)), "noise=.*; a function is needed"),
    (lambda p: p.decode(None), "latents of None; a tensor f 4 h w"),
    (lambda p: p.decode(torch.zeros(4, 8, 12)), "a tensor f 4 h w is needed"),
    (lambda p: p.decode(torch.zeros(1, 4, 8, 12), 0), "chunk=0; use 1 to"),
    (lambda p: p.sample("a", fps=float("nan")), "fps=nan is float; int is needed"),
    (lambda p: p.sample("a", steps=True), "steps=True is bool"),
    (lambda p: p.sample("a", guidance_scale="7"), "guidance_scale='7' is str"),
    (lambda p: p.sample("a", guidance_scale=float("inf")), "guidance_scale=inf; use"),
    (lambda p: p.sample("a", negative_prompt=None), "negative_prompt=None is NoneType"),
    (lambda p: p.sample("a", dtype=torch.float32), "dtype=torch.float32; use float32 or"),
    (lambda p: p.sample("a", dtype="float16"), "settings ask for float16, this pipeline"),
    (lambda p: p.sample("a", scale=2.0), "scale=2.0 is float"),
    (lambda p: p.sample("a", scales=(2, 2)), "there is no setting 'scales'; did you mean scale"),
    (lambda p: p.sample("a", frames=4), "there is no setting 'frames'"),
    (lambda p: zerosmooth.load(device="cuda:77"), "CUDA devices; use cpu"),
    (lambda p: zerosmooth.load(device=1.5), "is no device"),
    (lambda p: zerosmooth.load(dtype="float16"), "dtype='float16'; use one of torch.float32"),
    (lambda p: Running(device="toaster"), "is no device"),
    (lambda p: Running(offload="yes"), "offload='yes' is str; bool is needed"),
    (lambda p: Settings(overlap=2.5), "overlap=2.5 is float"),
    (lambda p: Settings(method="freenoise"), "eta=1.0 with freenoise"),
    (lambda p: settings_for(p.family, p.config, scale=1, join=0.5), "join does nothing at scale 1"),
])
def test_a_bad_call_is_told_before_anything_is_made(pipeline, monkeypatch, call, reason):
    monkeypatch.setattr(Pipeline, "_sample", lambda *_: pytest.fail("it was sampled"))
    with pytest.raises(UserError, match=reason):
        call(pipeline)


@pytest.mark.parametrize(("noise", "reason"), [
    (torch.zeros(1, 8, 4, 8, 12), r"noise\(-1\) is torch.float32 \(1, 8"),
    (torch.zeros(1, 16, 4, 8, 12).long(), "floating-point numbers of"), (None, "is None")])
def test_noise_of_another_shape_is_told(pipeline, noise, reason):
    with pytest.raises(UserError, match=reason):
        pipeline.sample("a", noise=lambda step: noise, scale=2)


def test_numbers_of_numpy_are_seeds(pipeline):
    asked = dict(steps=1, key_frames=2, scale=1)
    (one,), (other,) = (pipeline.sample("a", seeds=seeds, **asked) for seeds in (3, np.int64(3)))
    assert torch.equal(one.frames[0], other.frames[0]) and type(other.seed) is int
    videos = pipeline.sample(["a", "b"], seeds=np.arange(2), **asked)
    assert [video.seed for video in videos] == [0, 1]


# --- how a command ends


WITHOUT_SOURCE = """
from zerosmooth_cli.command import run_command
from zerosmooth.fields import UserError

def mistake():
    raise UserError("nothing\\nfits")

def fault():
    raise ValueError("a fault of ours")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Compiled, its source gone."""
    import py_compile
    (tmp_path / "bare.py").write_text(WITHOUT_SOURCE)
    py_compile.compile(str(tmp_path / "bare.py"), str(tmp_path / "bare.pyc"), doraise=True)
    (tmp_path / "bare.py").unlink()
    monkeypatch.syspath_prepend(tmp_path)
    import bare
    yield bare
    del sys.modules["bare"]


def test_a_mistake_is_known_by_its_class_without_any_source(module, capsys):
    assert run_command("test", module.mistake, "") == 1
    assert capsys.readouterr().err == "test: nothing\\nfits\n"
    with pytest.raises(ValueError, match="a fault of ours"):
        run_command("test", module.fault, "")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("fault", [
    lambda: int("x"), lambda: json.loads("{"), lambda: torch.zeros(2).reshape(3), lambda: [][0]])
def test_a_fault_of_ours_keeps_its_traceback(fault, capsys):
    with pytest.raises(Exception):
        run_command("test", fault, "")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("mistake", "said"), [
    (lambda: Running(frame_chunk=0), "test: frame_chunk=0; use 1 to 1048576"),
    (lambda: Path("/nowhere/a").write_text(""), "test: /nowhere/a: No such file or directory"),
    (lambda: np.zeros(10**15), "test: the device is out of memory"),
])
def test_a_mistake_of_the_user_is_one_line(mistake, said, capsys):
    assert run_command("test", mistake, "") == 1
    err = capsys.readouterr().err
    assert err.startswith(said) and err.count("\n") == 1


def test_what_a_terminal_would_obey_is_written_out(capsys):
    def work():
        print("a\x1b[2Jb\rc\x9dd\u202ee\n\tf")
        print("\r 50% of a bar", end="", file=sys.stderr)
        raise UserError("\x1b]52;c;eA==\x07")

    assert run_command("test", work, "") == 1
    said = capsys.readouterr()
    assert said.out == "a\\x1b[2Jb\\rc\\x9dd\\u202ee\n\\tf\n"
    assert said.err == "\r 50% of a bartest: \\x1b]52;c;eA==\\x07\n"
    assert str(UserError("a\x1b\n")) == "a\\x1b\\n"  # where Python prints it


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_that_ask_to_end_all_end_alike(name, capsys):
    number = getattr(signal, name)
    work = lambda: signal.raise_signal(number)  # noqa: E731
    assert run_command("test", work, "all is well") == 128 + number
    assert capsys.readouterr().err == "\ntest: stopped; all is well\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run_command("test", lambda: signal.raise_signal(signal.SIGHUP) or 0, "") == 0
    finally:
        signal.signal(signal.SIGHUP, before)


class Broken(io.TextIOWrapper):
    def write(self, text):
        raise BrokenPipeError


@pytest.mark.parametrize("stream", [io.TextIOWrapper(io.BytesIO(), encoding="cp1252"),
                                    io.TextIOWrapper(io.BytesIO(), encoding="ascii"),
                                    Broken(io.BytesIO())])
def test_nothing_printed_ends_a_run(tiny, monkeypatch, stream, tmp_path):
    quick(monkeypatch)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    folder = tmp_path / "動画"
    flags = ["--ckpt", str(tiny / "vc2.safetensors"), *QUICK, "gif=true", "--prompt", "赤い円"]
    assert sample.main([*flags, "--num_videos", "2", "--outdir", str(folder)]) == 0
    assert len(list(folder.glob("*.json"))) == 2
    if not isinstance(stream, Broken):
        assert rb"\u52d5\u753b" in stream.buffer.getvalue()


RUN = "from zerosmooth_cli.command import run_command; raise SystemExit(run_command('name', "


def python(*arguments, **options) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment,
                            stderr=subprocess.PIPE, **options)


def test_a_reader_that_goes_away_does_not_end_a_run():
    """As `| head -1` does, with a real pipe."""
    work = "lambda: [print(i) for i in range(100_000)] and 3, ''))"
    process = python("-c", RUN + work, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"0\n"
    process.stdout.close()
    assert process.wait(120) == 3 and process.stderr.read() == b""


@pytest.mark.parametrize("command", [
    ["sample.py"], ["-m", "zerosmooth_cli"],
    pytest.param(["-m", "evaluation"], marks=pytest.mark.long)])
def test_interrupting_the_imports_is_no_traceback(command):
    process = python("-X", "importtime", *command)
    for line in process.stderr:
        if b" torch._C" in line or b" torch.types" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(60) == -signal.SIGINT and b"Traceback" not in rest


class Callback:
    """What is raised in it goes no further, as in callbacks of a fork."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)


def swallowed():
    Callback()
    time.sleep(20)


def swallowed_before_a_fault():
    Callback()
    raise OSError(28, "No space left on device", "x")


def converted():
    """As torch does where it asks an object for its shape."""
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError
    except KeyboardInterrupt:
        raise UserError("of another kind") from None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("work", "became"), [
    (swallowed, ""),
    (swallowed_before_a_fault, "name: while stopping, OSError: x: No space left on device\n"),
    (converted, "name: while stopping, UserError: of another kind\n")])
def test_an_interruption_that_other_code_swallows_still_ends_the_run(work, became, capsys):
    """What it became is said, since it may be another fault."""
    assert run_command("name", work, "it went on") == 143
    assert capsys.readouterr().err == f"\nname: stopped; it went on\n{became}"


def test_processes_do_not_agree_on_what_an_interruption_became(monkeypatch):
    from zerosmooth_cli import command

    monkeypatch.setattr(command, "_several", lambda: True)
    monkeypatch.setattr(command, "together", lambda value: pytest.fail(f"{value} was told"))
    assert run_command("name", lambda: command.agreed("name", converted), "") == 143


# --- many cases


@pytest.mark.long
def test_mutated_records_flags_and_prompts_are_no_traceback(tiny, tmp_path):
    assert fuzz(tiny / "vc2.safetensors", tmp_path, 60, seed=1) == []


@pytest.mark.long
@pytest.mark.parametrize("case", list(cases(moments=(5, 13))), ids=str)
def test_a_killed_run_goes_on_to_the_same_files(case: Case, tiny, tmp_path):
    assert 0 < case.moment < MOMENTS
    assert case.problems(tiny / "vc2.safetensors", tmp_path) == []
