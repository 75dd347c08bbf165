"""Runs, records, prompts and flags that go wrong: nothing in silence, nothing with the wrong reason."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import zerosmooth
from evaluation import __main__ as evaluation
from zerosmooth import Cascade, Correction, HiddenStateBus, Running, Settings, Subject
from zerosmooth.cli.arguments import read_prompts
from zerosmooth.cli.command import run_command
from zerosmooth.pipeline import Pipeline, Video
from zerosmooth.settings import settings_for

from .fuzz_runs import fuzz
from .kills import MOMENTS, Case, cases
from .test_sample import ROOT, sample


@pytest.fixture
def quick(monkeypatch):
    """Sampling that takes no time: every pixel is the seed. Returns the seeds that were sampled."""
    sampled = []

    def made(pipeline, subjects, settings, *, seeds, running, progress, preview):
        sampled.append(seeds)
        cascade = settings.cascade
        frames = [cascade.frames_of(stage) for stage in range(cascade.stages)]
        pixels = [torch.full((n, settings.height, settings.width, 3), seeds % 256, dtype=torch.uint8) for n in frames]
        return [Video("", seeds, pixels, [8.0] * len(frames), [], settings, 0)]

    monkeypatch.setattr(Pipeline, "sample", made)
    return sampled


@pytest.fixture
def run(tiny, tmp_path, quick, capsys):
    """Run sample.py on the tiny checkpoint: run(*arguments, status=0) -> what it said, output and errors."""

    def run(*arguments, status=0, family="vc2"):
        capsys.readouterr()
        command = [
            "--ckpt",
            tiny / f"{family}.safetensors",
            "--scale",
            "2",
            "--steps",
            "25",
            "--gif",
            "--outdir",
            tmp_path / "out",
        ]
        assert sample.main([*map(str, command), "--device", "cpu", *map(str, arguments)]) == status
        said = capsys.readouterr()
        return said.out + said.err

    return run


# --- records


def damages(folder: Path):
    (record,) = folder.glob("*.json")
    content = json.loads(record.read_text())
    video, image = record.with_name(f"{record.stem}_16f.gif"), record.with_suffix(".png")
    yield lambda: video.write_bytes(b""), video
    yield lambda: image.write_bytes(image.read_bytes()[:-40]), image
    yield video.unlink, video
    for text in ("", "null", "[]", "{", "[" * 100_000, '{"files": []}', json.dumps({**content, "files": []})):
        yield (lambda text=text: record.write_text(text)), record
    yield lambda: record.write_text(json.dumps({**content, "seed": 9})), record  # another's


def test_what_is_damaged_is_made_again_and_said(run, quick, tmp_path):
    run("--prompt", "a")
    for damage, path in damages(tmp_path / "out"):
        files = [
            file for file in (tmp_path / "out").iterdir() if file.suffix not in (".json", ".html")
        ]  # which have times
        before = {file: file.read_bytes() for file in files}
        damage()
        said = run("--prompt", "a")
        assert f"{path} is damaged or gone; the video is made again" in said and "already" not in said
        assert {file: file.read_bytes() for file in before} == before
        assert "1 of 1 videos are in" in run("--prompt", "a")
    assert len(quick) == 12


def test_a_folder_where_a_file_belongs_is_told_before_sampling(run, quick, tmp_path):
    run("--prompt", "a")
    (video,) = (tmp_path / "out").glob("*_8f.gif")
    video.unlink()
    video.mkdir()
    assert f"{video} is a folder, where a file of a result belongs" in run("--prompt", "a", status=1)
    assert len(quick) == 1


def test_what_dead_processes_left_is_removed_even_if_there_is_nothing_to_do(run, tmp_path):
    run("--prompt", "a")
    left = tmp_path / "elsewhere" / ".a_seed0_0123_8f.4000000.part.mp4"
    left.parent.mkdir()
    for path in (tmp_path / "out").iterdir():
        (left.parent / path.name).write_bytes(path.read_bytes())
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    assert "1 of 1 videos" in run("--prompt", "a", "--outdir", left.parent)
    assert not left.exists()


def test_ten_million_videos_begin_with_the_first(run, monkeypatch):
    def first(*_, seeds, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "sample", first)
    looked = []
    lacks = zerosmooth.results.Result.lacks
    monkeypatch.setattr(zerosmooth.results.Result, "lacks", lambda self: looked.append(self) or lacks(self))
    assert "stopped" in run("--num_videos", 10_000_000, status=130)
    assert len(looked) == 1


def test_an_unchanged_checkpoint_is_not_read_to_find_nothing_to_do(run, monkeypatch, tiny):
    run("--prompt", "a")
    size, read = (tiny / "vc2.safetensors").stat().st_size, []
    opened = Path.open

    def counting(path, *arguments, **options):
        file = opened(path, *arguments, **options)
        if path.suffix == ".safetensors":
            whole = file.read
            file = io.BufferedReader(io.BytesIO(whole()))
            take = file.read
            file.read = lambda n=-1: read.append(len(data := take(n))) or data
        return file

    monkeypatch.setattr(Path, "open", counting)
    run("--prompt", "a")
    assert sum(read) < size / 2


# --- the evaluation's records


@pytest.fixture
def experiment(tiny, tmp_path, capsys):
    """Run an evaluation of one prompt: experiment(*arguments, status=0) -> what it said."""
    (tmp_path / "prompts.txt").write_text("a cat\n")
    detector = tmp_path / "mean.pt"
    torch.jit.script(Mean()).save(str(detector))

    def run(*arguments, status=0):
        capsys.readouterr()
        command = ["--ckpt", tiny / "vc2.safetensors", "--prompt_file", tmp_path / "prompts.txt", "--rows", "direct"]
        command += ["--steps", "1", "--scale", "2", "--device", "cpu", "--show", "1", "--classifier", detector]
        assert evaluation.main([*map(str, command), "--outdir", str(tmp_path / "out"), *map(str, arguments)]) == status
        said = capsys.readouterr()
        return said.out + said.err

    return run


class Mean(torch.nn.Module):
    def forward(self, x):
        return x.mean(dim=[2, 3, 4]).softmax(-1)


def test_damaged_files_of_an_evaluation_are_made_again_and_said(experiment, tmp_path):
    experiment()
    for suffix in (".json", ".features", ".frames"):
        (path,) = (tmp_path / "out/videos").glob(f"*{suffix}")
        whole = path.read_bytes()
        for content in (b"", b"null", b"[]", b'{"row": "direct"}', whole[: len(whole) // 2]):
            path.write_bytes(content)
            assert f"{path} is damaged; the video is made again" in experiment()
            assert path.read_bytes() == whole or suffix == ".json"
        path.unlink()
        path.mkdir()
        assert f"{path} is a folder" in experiment(status=1)
        path.rmdir()
        path.write_bytes(whole)
    (tmp_path / "out/evaluation.json").write_text("[")
    assert "evaluation.json is damaged" in experiment()
    (tmp_path / "out/videos/other.json").write_text("{}")
    assert "other.json is damaged and left out" in experiment()


def test_an_evaluation_says_what_the_encoder_does_not_see(experiment):
    assert "tokens of 'blue blue" in experiment("--negative_prompt", "blue " * 40)


def test_an_evaluation_is_not_listed_without_a_limit(experiment):
    assert "use 1 to 1000000" in experiment("--num_videos", 10_000_000, status=1)
    assert "is a file; name a folder" in experiment("--outdir", __file__, status=1)


# --- prompts


def prompts(tmp_path, content: bytes) -> list[str]:
    (tmp_path / "prompts").write_bytes(content)
    return read_prompts(tmp_path / "prompts")


def test_a_prompt_ends_where_a_line_ends(tmp_path):
    text = "a\u2028b\nc\x0cd\x85e\r\n# no\rf\x0b\n\x1c\u2029\n"
    assert prompts(tmp_path, text.encode()) == ["a\u2028b", "c\x0cd\x85e", "f"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a cat".encode("utf-16-le"), "NULs in it, as UTF-16"),
        ("a cat".encode("utf-16"), "not UTF-8 text"),
        (b"\xff", "not UTF-8 text"),
        (b"x" * 64_000_001, "more than 64 MB"),
    ],
)
def test_what_is_no_list_of_prompts_is_refused(tmp_path, content, reason):
    with pytest.raises(ValueError, match=reason):
        prompts(tmp_path, content)


def test_prompts_may_come_through_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("a\nb\n"))
    writer.start()
    assert read_prompts(tmp_path / "pipe") == ["a", "b"]
    writer.join()


def test_a_long_negative_prompt_is_said(run):
    assert "tokens of 'blue blue" in run("--negative_prompt", "blue " * 40)


# --- flags


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--guidance_scale 1e39", "guidance_scale=1e+39; use -1000 to 1000"),
        ("--fps 1000000000000000000000000000000", "use 1 to 1000"),
        ("--decode_chunk_size 1000000000000000000000000000000", "use 1 to 1048576"),
        (f"--seed {'9' * 250}", "--seed=(a number of 831 bits); use"),
        (f"--num_videos {'9' * 250}", "--num_videos=(a number of 831 bits); use 1 to"),
        ("--check --height 1600000", "height=1600000; use 1 to 8192"),
        ("--check --fps 0", "fps=0"),
        ("--check --num_videos 0", "--num_videos=0"),
        ("--check --prompt_file none.txt", "none.txt does not exist"),
        ("--check --image none.png", "--image does not fit"),
        ("--scale 1 --strength 0.8", "strength does nothing at scale 1"),
        ("--scale 1 --no_spatial", "spatial does nothing at scale 1"),
        ("--scale 1 --color_correction", "color_correction does nothing at scale 1"),
        ("--no_spatial --kv_operator S", "kv_operator does nothing where spatial"),
        ("--kv_operator S --a1_probability 0.5", "a1_probability does nothing to kv_operator S"),
        ("--kv_operator S --draw_seed 1", "draw_seed does nothing to kv_operator S"),
        ("--strength 0 --no_spatial", "spatial does nothing at strength=0"),
        ("--strength 0 --strength_schedule constant", "strength_schedule does nothing at strength=0"),
        ("--no_spatial --no_temporal --strength 1", "strength does nothing where no hidden states are"),
        ("--method direct --strength 0.8", "strength does nothing to direct"),
        ("--preset anchored --join 0.01", "join=0.01 comes to none of 25 steps"),
        ("--method direct --reuse 2", "reuse does nothing to direct"),
        ("--steps 1 --reuse 2", "reuse=2 reuses nothing in 1 steps of all stages"),
        ("--preset anchored --join 1 --reuse 2", "reuse=2 reuses nothing in 1 steps of all stages"),
        ("--guidance_scale 1 --negative_prompt blue", "negative_prompt does nothing without guidance"),
        (f"--prompt {'x' * 10_001}", "a prompt has 10,001 letters"),
        (f"--outdir {__file__}", "is a file; name a folder"),
    ],
)
def test_what_cannot_be_or_does_nothing_is_refused(run, quick, flags, reason):
    said = run(*flags.split(), status=1)
    assert reason in (last := said.splitlines()[-1]) and last.startswith("sample.py: ")  # no traceback
    assert not quick


def test_flags_that_do_nothing_are_refused_where_the_network_is_not_told(run):
    said = run("--fps", 10, "--save_fps", 8, family="lavie", status=1)
    assert "--fps does nothing beside --save_fps" in said
    assert "sample.py: --prompt does not fit" in run("--prompt", "", family="svd", status=1)


def test_memory_settings_that_do_nothing_are_said(run):
    assert "note: offload does nothing on the CPU" in run("--offload")
    assert "note: sequential_guidance does nothing" in run("--sequential_guidance", "--guidance_scale", 1)
    assert "note" not in run("--sequential_guidance")


@pytest.mark.parametrize("flag", ["--image", "--outdir", "--prompt_file"])
def test_an_empty_path_is_not_the_working_directory(run, flag, capsys):
    with pytest.raises(SystemExit):
        sample.main([flag, ""])
    assert "it is empty" in capsys.readouterr().err


# --- from Python


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda p: p.sample(3), "3 is no subject"),
        (lambda p: p.sample([3]), "3 is no subject"),
        (lambda p: p.sample([None]), "None is no subject"),
        (lambda p: p.sample(b"a"), "is no subject"),
        (lambda p: p.sample(Path("a.png")), "is no subject"),
        (lambda p: p.sample([]), "nothing to make"),
        (lambda p: p.sample(Subject(3)), "a prompt=3 is int"),
        (lambda p: p.sample("x" * 10_001), "10,001 letters"),
        (lambda p: p.sample(np.zeros((20, 20, 3), np.uint8)), "makes videos from prompt, not from image"),
        (lambda p: p.sample("a", seeds=1.5), "seeds=1.5; a whole number"),
        (lambda p: p.sample("a", seeds=None), "seeds=None; a whole number"),
        (lambda p: p.sample("a", seeds="12"), "seeds='12'; a whole number"),
        (lambda p: p.sample("a", seeds=[1, 2]), "2 seeds for 1 videos"),
        (lambda p: p.sample("a", seeds=1 << 63), "seeds=9223372036854775808; use"),
        (lambda p: p.sample("a", seeds=10**5000), "a number of 16610 bits"),
        (lambda p: p.sample("a", {"steps": 2}), "settings={'steps': 2}"),
        (lambda p: p.sample("a", running=None), "running=None"),
        (lambda p: p.sample("a", progress=None), "progress=None"),
        (lambda p: p.sample("a", preview=1), "preview=1"),
        (lambda p: p.sample("a", noise=torch.zeros(1, 32, 4, 8, 12)), "a function of the step is needed"),
        (lambda p: p.sample("a", noise=lambda i: torch.zeros(1, 8, 4, 8, 12)), r"noise\(-1\) is torch.float32 \(1, 8"),
        (lambda p: p.sample("a", noise=lambda i: torch.zeros(1, 32, 4, 8, 12).long()), "floating-point numbers of"),
        (lambda p: p.sample("a", noise=lambda i: None), r"noise\(-1\) is None"),
        (lambda p: p.sample("a", image_noise=torch.zeros(1)), "image_noise does nothing"),
        (lambda p: p.sample("a", fps=float("nan")), "fps=nan is float; int is needed"),
        (lambda p: p.sample("a", fps="8"), "fps='8' is str; int is needed"),
        (lambda p: p.sample("a", steps=2.5), "steps=2.5 is float"),
        (lambda p: p.sample("a", steps=True), "steps=True is bool"),
        (lambda p: p.sample("a", guidance_scale="7"), "guidance_scale='7' is str"),
        (lambda p: p.sample("a", guidance_scale=float("inf")), "guidance_scale=inf; use"),
        (lambda p: p.sample("a", negative_prompt=None), "negative_prompt=None is NoneType"),
        (lambda p: p.sample("a", height=16.0), "height=16.0 is float"),
        (lambda p: p.sample("a", dtype=torch.float32), "dtype=torch.float32; use 'float32' or"),
        (lambda p: p.sample("a", scales=2), r"scales=2; a tuple is needed, such as \(2, 2\)"),
        (lambda p: p.sample("a", scales=(2,) * 30), "make more than 65,536 frames"),
        (lambda p: p.sample("a", cascade=Cascade()), "there is no setting 'cascade'"),
        (lambda p: p.decode(None), "latents of None; a tensor f 4 h w"),
        (lambda p: p.decode(torch.zeros(4, 8, 12)), "a tensor f 4 h w is needed"),
        (lambda p: p.decode(torch.zeros(1, 4, 8, 12), 0), "chunk=0; use 1 to"),
        (lambda p: zerosmooth.load(device="cuda:7"), "CUDA devices; use cpu"),
        (lambda p: zerosmooth.load(device="toaster"), "is no device"),
        (lambda p: zerosmooth.load(device=1.5), "is no device"),
        (lambda p: zerosmooth.load(dtype="float16"), "dtype='float16'; use one of torch.float32"),
        (lambda p: zerosmooth.load(dtype=torch.int8), "dtype=torch.int8; use one of"),
        (lambda p: Cascade(frames=16.0), "frames=16.0 is float"),
        (lambda p: Cascade(frames=0), "frames=0; use 1 to"),
        (lambda p: Cascade(scales=(1,)), r"scales=1; use 2 to"),
        (lambda p: Cascade(scales=(2.5,)), "scales=2.5 is float"),
        (lambda p: Cascade(strength="1"), "strength='1' is str"),
        (lambda p: Cascade(strength=float("nan")), "strength=nan; use 0 to 1"),
        (lambda p: Cascade(overlap=2.5), "overlap=2.5 is float"),
        (lambda p: Cascade(correction=None), "correction=None is NoneType; Correction is needed"),
        (lambda p: Cascade(method="magic"), "method='magic'"),
        (lambda p: Correction(spatial=1), "spatial=1 is int; bool is needed"),
        (lambda p: Correction(a1_probability=2), "a1_probability=2; use 0 to 1"),
        (lambda p: HiddenStateBus("16"), "frames='16' is str"),
        (lambda p: HiddenStateBus(16, 2), "scales=2; a tuple"),
        (lambda p: HiddenStateBus(16, (1,)), "scales=1; use 2 to"),
        (lambda p: HiddenStateBus(16, (2,), correction=True), "correction=True is bool"),
        (lambda p: Running(device="toaster"), "is no device"),
        (lambda p: Running(frame_chunk=0), "frame_chunk=0; use 1 to"),
        (lambda p: Running(offload="yes"), "offload='yes' is str; bool is needed"),
        (lambda p: Settings(cascade=None), "cascade=None is NoneType; Cascade is needed"),
        (lambda p: settings_for(p.family, p.config, scales=(), strength=1.0), "strength does nothing at scale 1"),
    ],
)
def test_a_bad_call_is_told_at_the_door(pipeline, monkeypatch, call, reason):
    monkeypatch.setattr(Pipeline, "_sample", lambda self, *given: [given[4](-1)])  # it looks at its noise, no more
    with pytest.raises(ValueError, match=reason):
        call(pipeline)


def test_numbers_of_numpy_are_seeds(pipeline):
    asked = dict(steps=1, frames=2, scales=())
    (one,), (other,) = (pipeline.sample("a", seeds=seeds, **asked) for seeds in (3, np.int64(3)))
    assert torch.equal(one.frames[0], other.frames[0]) and type(other.seed) is int
    assert [video.seed for video in pipeline.sample(["a", "b"], seeds=np.arange(2), **asked)] == [0, 1]


# --- how a command ends


def test_a_fault_of_ours_keeps_its_traceback(run, monkeypatch, capsys):
    for fault in (lambda: int("x"), lambda: json.loads("{"), lambda: torch.zeros(2).reshape(3), lambda: [][0]):
        with pytest.raises(Exception):
            run_command("test", fault, "")
        assert capsys.readouterr().err == ""
    monkeypatch.setattr(sample.arguments, "seeds_of", lambda args: range(int("one")))
    with pytest.raises(ValueError, match="invalid literal"):
        run()


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (lambda: Cascade(frames=0), "test: frames=0; use 1 to 65536"),
        (lambda: Path("/nowhere/a").write_text(""), "test: /nowhere/a: No such file or directory"),
        (lambda: np.zeros(10**15), "test: the device is out of memory"),
    ],
)
def test_a_mistake_of_the_user_is_one_line(mistake, said, capsys):
    assert run_command("test", mistake, "") == 1
    err = capsys.readouterr().err
    assert err.startswith(said) and err.count("\n") == 1


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_that_ask_to_end_all_end_alike(name, capsys):
    number = getattr(signal, name)
    assert run_command("test", lambda: signal.raise_signal(number), "all is well") == 128 + number
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


@pytest.mark.parametrize(
    "stream",
    [
        io.TextIOWrapper(io.BytesIO(), encoding="cp1252"),
        io.TextIOWrapper(io.BytesIO(), encoding="ascii"),
        Broken(io.BytesIO()),
    ],
)
def test_nothing_printed_ends_a_run(run, quick, monkeypatch, stream, tmp_path):
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    folder = tmp_path / "動画"
    command = ["--prompt", "赤い円", "--num_videos", "3", "--outdir", str(folder), "--gif", "--scale", "1"]
    assert sample.main([*command, "--ckpt", str(next(ROOT.glob("zerosmooth/assets/vc2-small.safetensors")))]) == 0
    assert len(list(folder.glob("*.gif"))) == 3
    if not isinstance(stream, Broken):
        assert rb"\u52d5\u753b" in stream.buffer.getvalue()


SCRIPT = "import sys; sys.path.insert(0, {root!r}); from zerosmooth.cli.command import run_command; "


def test_a_reader_that_goes_away_does_not_end_a_run():
    """As `| head -1` does, with a real pipe."""
    work = "lambda: [print(i) for i in range(100_000)] and 3"
    code = f"{SCRIPT.format(root=str(ROOT))}sys.exit(run_command('test', {work}, ''))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"0\n"
    process.stdout.close()
    assert process.wait(120) == 3 and process.stderr.read() == b""


@pytest.mark.parametrize("command", [["sample.py"], ["-m", "evaluation"]])
def test_interrupting_the_imports_is_no_traceback(command):
    process = subprocess.Popen([sys.executable, "-X", "importtime", *command], cwd=ROOT, stderr=subprocess.PIPE)
    for line in process.stderr:
        if b" torch._C" in line or b" torch.types" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(60) == -signal.SIGINT and b"Traceback" not in rest


# --- mutated


def test_mutated_records_flags_and_prompts_are_no_traceback(quick, tiny, tmp_path):
    assert fuzz(tiny / "vc2.safetensors", tmp_path, 60, seed=1) == []


# --- killed and run again


@pytest.mark.parametrize("case", list(cases(moments=(5, 13))), ids=str)
def test_a_killed_run_goes_on_to_the_same_files(case: Case, tiny, tmp_path):
    assert 0 < case.moment < MOMENTS
    assert case.problems(tiny / "vc2.safetensors", tmp_path) == []


SWALLOWED = """
import os, signal, time
from zerosmooth.cli.command import run_command

class Callback:
    def __del__(self):  # what is raised in it goes no further, as in callbacks of a fork
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)

def work():
    Callback()
    time.sleep(20)
    return 0
"""
CONVERTED = """
import os, signal, time
from zerosmooth.cli.command import run_command

def work():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)
    except KeyboardInterrupt:  # as torch does where it asks an object for its shape
        pass
    raise ERROR("could not determine the shape of object type 'torch.storage.UntypedStorage'")
"""


TWICE = SWALLOWED.replace("time.sleep(20)", "raise OSError(28, 'No space left on device', 'x')")


@pytest.mark.parametrize(
    "program", [SWALLOWED, TWICE, *(CONVERTED.replace("ERROR", e) for e in ("ValueError", "KeyError"))]
)
def test_an_interruption_that_other_code_swallows_still_ends_the_run(program):
    """What it became is said, since it may be another fault."""
    command = [sys.executable, "-c", program + "raise SystemExit(run_command('name', work, 'it went on'))"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 143 and "name: stopped; it went on" in done.stderr
    if program is not SWALLOWED:
        assert "name: while stopping, " in done.stderr and "Traceback" not in done.stderr.partition("name: stopped")[2]


def test_processes_do_not_agree_on_what_an_interruption_became(monkeypatch):
    monkeypatch.setattr(zerosmooth.cli.processes, "_several", lambda: True)
    monkeypatch.setattr(zerosmooth.cli.processes, "together", lambda value: pytest.fail(f"{value} was told"))

    def work():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError("not reached")

    def converted():
        try:
            return work()
        except KeyboardInterrupt:
            raise ValueError("of another kind") from None

    assert run_command("name", lambda: zerosmooth.cli.processes.agreed("name", converted), "") == 143
