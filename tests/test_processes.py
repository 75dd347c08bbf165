"""Prompts from standard input, and several processes that share the videos."""

import io
import os
import re
import subprocess
import sys

import pytest

from zerosmooth.fields import UserError
from zerosmooth_cli import command
from zerosmooth_cli.arguments import STDIN, read_prompts

from .command import QUICK, ROOT, contents, make, records

PROMPTS = b"# three\na cat\na dog\n\na bird\n"


def stdin(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_prompts_come_from_standard_input(monkeypatch):
    stdin(monkeypatch, PROMPTS)
    assert read_prompts(STDIN) == ["a cat", "a dog", "a bird"]
    for content, reason in ((b"", "has no prompts"), (b"\xff", "not UTF-8"), (b"a\0", "NULs")):
        stdin(monkeypatch, content)
        with pytest.raises(UserError, match=f"standard input .*{reason}"):
            read_prompts(STDIN)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="no standard input"):
        read_prompts(STDIN)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), UserError("it is empty")])
def test_what_the_first_process_could_not_read_is_told_to_all(monkeypatch, error):
    def fails():
        raise error

    def gathered(value):  # of this process and another one
        return [value, (None, None)]

    monkeypatch.setattr(command, "together", gathered)
    with pytest.raises(UserError, match="Input/output error|it is empty"):
        command.once(fails)


def torchrun(*arguments, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
               "2", "sample.py", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, **options)


@pytest.mark.long
def test_two_processes_make_each_video_once_and_as_one_does(tiny, tmp_path, monkeypatch):
    """The prompts come through one pipe, which only one of the processes can read."""
    flags = ["--prompt_file", "-", "--num_videos", 2, "--set", f"negative_prompt={'blue ' * 40}"]
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    stdin(monkeypatch, PROMPTS)
    one, two = tmp_path / "one", tmp_path / "two"
    alone = make(tiny, *flags, "--outdir", one)
    both = ["--ckpt", tiny / "vc2.safetensors", *QUICK, *flags, "--outdir", two]
    done = torchrun(*both, input=PROMPTS)
    assert done.returncode == 0, done.stderr
    assert contents(one) == contents(two) and len(contents(one)) == 6 * 3
    own = dict.fromkeys(("seconds", "command"))
    assert [a | own for a in records(one)] == [b | own for b in records(two)]
    assert len(records(one)) == 6
    pages = [(folder / "index.html").read_text() for folder in (one, two)]
    assert [page.count('class="entry"') for page in pages] == [6, 6]
    said = [re.sub(r" \(\d+\.\d s\)", "", text).replace(str(folder), "").splitlines()
            for text, folder in ((alone, one), (done.stdout.decode(), two))]
    said[0] = [line for line in said[0] if not re.match(" *[0-9]+%  ", line)]  # of progress
    assert sorted(said[0]) == sorted(said[1])
    assert any("tokens of 'blue blue" in line for line in said[0])
    next(two.glob("*.png")).unlink()
    again = torchrun(*both, input=PROMPTS)
    assert again.returncode == 0 and again.stdout.count(b"is damaged or gone") == 1
    assert again.stdout.count(b"5 of 6 videos are in") == again.stdout.count(b"videos are in") == 1


@pytest.mark.long
def test_what_is_wrong_is_said_by_one_process(tmp_path):
    done = torchrun("--steps", 0, "--outdir", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.count(b"sample.py: steps=0; use 1 to 1000") == 1
    assert not (tmp_path / "out").exists()
