"""Prompts from standard input, and several processes that share the videos."""

import io
import json
import os
import re
import subprocess
import sys

import pytest

from zerosmooth.cli.arguments import STDIN, read_prompts

from .test_sample import ROOT, sample

PROMPTS = b"# three\na cat\na dog\n\na bird\n"


def stdin(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_prompts_come_from_standard_input(monkeypatch):
    stdin(monkeypatch, PROMPTS)
    assert read_prompts(STDIN) == ["a cat", "a dog", "a bird"]
    for content, reason in ((b"", "has no prompts"), (b"\xff", "not UTF-8"), (b"a\0", "NULs")):
        stdin(monkeypatch, content)
        with pytest.raises(ValueError, match=f"standard input .*{reason}"):
            read_prompts(STDIN)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="no standard input"):
        read_prompts(STDIN)


def torchrun(*arguments, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "sample.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([*command, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, **options)


def test_two_processes_make_each_video_once_and_as_one_does(tiny, tmp_path, monkeypatch, capsys):
    """The prompts come through one pipe, which only one of the processes can read."""
    flags = ["--ckpt", tiny / "vc2.safetensors", "--prompt_file", "-", "--num_videos", 2, "--device", "cpu"]
    flags += ["--steps", 2, "--key_frames", 4, "--scale", 2, "--negative_prompt", "blue " * 40]
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    stdin(monkeypatch, PROMPTS)
    assert sample.main([*map(str, flags), "--outdir", str(tmp_path / "one")]) == 0
    alone = capsys.readouterr().out
    done = torchrun(*flags, "--outdir", tmp_path / "two", input=PROMPTS)
    assert done.returncode == 0, done.stderr
    one, two = ({path.name: path for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one.keys() == two.keys() and len(one) == 6 * 4 + 1
    for name, path in one.items():
        if path.suffix == ".json":
            a, b = (json.loads(p.read_text()) for p in (path, two[name]))
            assert all(a[key] == b[key] for key in a if key not in ("seconds", "command"))
        elif path.suffix == ".html":  # which names its folder, and has the latest video first
            assert [p.read_text().count('class="entry"') for p in (path, two[name])] == [6, 6]
        else:
            assert path.read_bytes() == two[name].read_bytes(), name
    seconds = r" \(\d+\.\d s\)"
    lines = [
        sorted(io.StringIO(re.sub(seconds, "", text).replace(str(tmp_path / folder), "")).readlines())
        for text, folder in ((alone, "one"), (done.stdout.decode(), "two"))
    ]
    assert lines[0] == lines[1] and any("tokens of 'blue blue" in line for line in lines[0])
    (tmp_path / "two" / next(name for name in two if name.endswith(".png"))).unlink()
    again = torchrun(*flags, "--outdir", tmp_path / "two", input=PROMPTS)
    assert again.returncode == 0 and again.stdout.count(b"is damaged or gone") == 1
    assert again.stdout.count(b"5 of 6 videos are in") == 1 and again.stdout.count(b"videos are in") == 1


def test_what_is_wrong_is_said_by_one_process(tmp_path):
    done = torchrun("--steps", 0, "--outdir", tmp_path / "out")
    assert done.returncode == 1 and done.stderr.count(b"sample.py: steps=0; use 1 to 1000") == 1
    assert not (tmp_path / "out").exists()
