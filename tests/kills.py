"""Ends a run of sample.py or of the evaluation at many moments, runs it again, and compares with an
unbroken one.

    python -m tests.kills       # every signal at every moment, minutes; tests/test_robust.py: a few

Each run is a process of its own, forked from one that has the libraries loaded.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .command import sample

MOMENTS = 20
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
COMMANDS = ("mp4", "gif", "evaluation")
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.kills", "evaluation.__main__"])
UNLIKE = ("seconds", "command", "table.md")  # what no two runs have alike


@dataclass(frozen=True)
class Case:
    """moment: of MOMENTS, evenly over the time that an unbroken run takes."""

    command: str
    signal: str
    moment: int

    def __str__(self) -> str:
        return f"{self.command}-{self.signal}-{self.moment}"

    def problems(self, checkpoint: Path, folder: Path) -> list[str]:
        """What differs from an unbroken run after one that was killed and one that was not."""
        wanted, seconds = unbroken(self.command, checkpoint)
        killed = start(self.command, checkpoint, folder)
        time.sleep(seconds * self.moment / (MOMENTS + 1))
        number = getattr(signal, self.signal)
        with suppress(ProcessLookupError):  # it may be over, if the unbroken run was slowed
            os.kill(killed.pid, number)
        killed.join(60)
        ends = (0, -number) if number == signal.SIGKILL else (0, -number, 128 + number)
        problems = [] if killed.exitcode in ends else [f"it ended with {killed.exitcode}"]
        for part in folder.rglob(".*.part*"):
            if number != signal.SIGKILL:
                problems.append(f"{part.name} is left over by a process that could have removed it")
        time.sleep(1.1 if number == signal.SIGKILL else 0)  # what is younger is left alone
        again = start(self.command, checkpoint, folder)
        again.join(120)
        if again.exitcode != 0:
            problems.append(f"run again, it ended with {again.exitcode}")
        got = contents(folder)
        problems += [f"{name} is left over" for name in got.keys() - wanted.keys()]
        problems += [f"{name} is missing" for name in wanted.keys() - got.keys()]
        both = wanted.keys() & got.keys()
        return problems + [f"{name} is another" for name in both if got[name] != wanted[name]]


def cases(moments: Sequence[int] = range(1, MOMENTS + 1)) -> Iterator[Case]:
    for command in COMMANDS:
        for name in SIGNALS:
            yield from (Case(command, name, moment) for moment in moments)


def arguments(command: str, checkpoint: Path, folder: Path) -> list[str]:
    """Two prompts."""
    beside = folder.parent / f"{folder.name}-given"
    beside.mkdir(exist_ok=True)
    (beside / "prompts.txt").write_text("a cat\na dog\n")
    own = ["--set", "gif=true"] if command == "gif" else []
    if command == "evaluation":
        torch.jit.script(Mean()).save(str(beside / "mean.pt"))
        own = ["--rows", "direct", "zerosmooth", "--show", "1", "--classifier", beside / "mean.pt"]
    given = ["--ckpt", checkpoint, "--prompt_file", beside / "prompts.txt", "--outdir", folder]
    return [str(x) for x in (*given, *own, "--steps", 2, "--scale", 2, "--device", "cpu")]


class Mean(torch.nn.Module):
    """Mean colours as the probabilities of classes."""

    def forward(self, x):
        return x.mean(dim=[2, 3, 4]).softmax(-1)


def start(command: str, checkpoint: Path, folder: Path) -> Any:
    process = SERVER.Process(target=work, args=(command, arguments(command, checkpoint, folder)))
    process.start()
    return process


def work(command: str, given: list[str]) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    if command == "evaluation":
        from evaluation import __main__ as evaluation
        sys.exit(evaluation.main(given))
    sys.exit(sample.main(given))


@cache
def unbroken(command: str, checkpoint: Path) -> tuple[dict[str, Any], float]:
    """The contents of an unbroken run's folder, and the seconds that one takes."""
    for _ in range(2):  # the first one starts the server
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            process = start(command, checkpoint, Path(folder) / "out")
            process.join(120)
            assert process.exitcode == 0, process.exitcode
            seconds, found = time.perf_counter() - began, contents(Path(folder) / "out")
    return found, seconds


def contents(folder: Path) -> dict[str, Any]:
    """Of all files, by their names, without what no two runs have alike."""
    return {str(path.relative_to(folder)): content(path) for path in folder.rglob("*")
            if path.is_file()}


def content(path: Path) -> Any:
    if path.suffix == ".json":
        return _without(json.loads(path.read_text()))
    if path.suffix == ".html":
        return path.read_text().count('class="entry"')
    return None if path.name in UNLIKE else path.read_bytes()


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(inner) for key, inner in value.items() if key not in UNLIKE}
    return [*map(_without, value)] if isinstance(value, list) else value


def main() -> int:
    from zerosmooth.checkpoint import save
    from zerosmooth.families import FAMILIES

    from .conftest import TINY_FAMILIES, tiny_pipeline

    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "vc2.safetensors"
        tensors = tiny_pipeline("vc2").networks.state_dict().items()
        save(checkpoint, FAMILIES["vc2"], TINY_FAMILIES["vc2"], tensors, torch.float32, "a test",
             "0" * 64)
        for case in cases():
            problems = case.problems(checkpoint, Path(folder) / str(case))
            failed += bool(problems)
            print(f"{case}: {'; '.join(problems) or 'as unbroken'}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
