"""Throws mutated records, flags and prompts at sample.py: no traceback, no hang, no file that is
cut under its name.

    python -m tests.fuzz_runs --cases 400 --seed 0      # all in this process, videos are grey
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from zerosmooth.pipeline import Pipeline
from zerosmooth.video import read_video, write_video
from zerosmooth_cli.arguments import FLAGS, OPTIONS

from .command import contents, grey, records, sample

VALUES = ["", "0", "-1", "1", "2", "nan", "inf", "-inf", "1e39", "9" * 40, "9" * 5000, "0.5", "x",
          "é\u2028", "true", "false", "none", "S", "{seed}", "{0", "\udcff"]
JSON = [None, [], {}, 0, -1, 1e300, "", "x", True, [[]], {"files": None}, [None] * 3]
SECONDS = 20  # of computing that no single case may take


def flags(rng: random.Random) -> list[str]:
    """Some with odd values, checked only: what they would make could be large."""
    given = ["--check"]
    for name in rng.sample(("seed", "num_videos", "image", "prompt", *FLAGS), rng.randint(0, 2)):
        given.append(f"--{name}={rng.choice(VALUES)}")
    for name in rng.sample([*OPTIONS, "magic"], rng.randint(1, 3)):
        choices = OPTIONS[name].choices if name in OPTIONS else ()
        given += ["--set", f"{name}={rng.choice([*VALUES, *choices])}"]
    return given


def prompts(rng: random.Random) -> bytes:
    letters = rng.choices("ab #\n\r\x0c\x85\u2028\t\ufeff赤\U0001f600", k=rng.randint(0, 60))
    code = rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"))
    content = bytearray("".join(letters).encode(code))
    for _ in range(rng.choice((0, 0, 1, 4))):
        if content:
            content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def beyond(rng: random.Random, record: dict[str, Any]) -> dict[str, Any]:
    """A record that asks for more than flags may, or says what a terminal would obey."""
    record = json.loads(json.dumps(record))
    for _ in range(rng.randint(1, 3)):
        inner = (record[name] for name in ("settings", "running", "versions"))
        of = rng.choice([record, *(one for one in inner if isinstance(one, dict))])
        most = (8, 256, 1000, 8192, 1 << 20, 1 << 40, -1, 0.5, "\x1b[2J\x07\n\r", "caf\udce9")
        of[rng.choice(list(of))] = rng.choice((*most, rng.choice(JSON)))
    return record


def containers(rng: random.Random, folder: Path) -> None:
    """Two processes of one number write one file, which is then whole."""
    path = folder / f"x{rng.choice(('.gif', '.mp4'))}"
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    with patch.object(os, "getpid", lambda: 1), ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: write_video(path, frames, 8), range(2)))
    assert len(read_video(path, 2)) == 2


def damage(rng: random.Random, folder: Path) -> None:
    """Of one file of a finished result."""
    path = rng.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    content = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.7:
        record = json.loads(content)
        record[rng.choice([*record, "other"])] = rng.choice(JSON)
        path.write_text(json.dumps(rng.choice((record, rng.choice(JSON)))))
    elif rng.random() < 0.2:
        path.unlink()
    else:
        path.write_bytes(content[: rng.randrange(len(content))])


def run(arguments: list[str]) -> tuple[int, str]:
    """The exit status of sample.py, and what it said. Whatever it raises goes on."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            return sample.main(arguments), said.getvalue()
        except SystemExit as end:  # argparse
            return int(end.code or 0), said.getvalue()


def fuzz(checkpoint: Path, folder: Path, cases: int, seed: int) -> list[str]:
    """The problems."""
    rng, problems = random.Random(seed), []
    common = ["--ckpt", str(checkpoint), "--scale", "1", "--steps", "25", "--device", "cpu",
              "--set", "gif=true"]
    record = [*common, "--prompt", "a cat", "--outdir", str(folder / "record")]
    run(record)
    whole = contents(folder / "record")
    (kept,) = records(folder / "record")
    for i in range(cases):
        kinds = ("flags", "prompts", "record", "again", "containers")
        began, what = time.process_time(), rng.choices(kinds, (4, 4, 4, 4, 1))[0]
        if what == "again":
            (folder / "again.json").write_text(json.dumps(beyond(rng, kept)))
            given = ["--again", str(folder / "again.json"), "--device", "cpu", "--outdir",
                     str(folder / "remade")]
        elif what == "flags":
            given = [*common, "--outdir", str(folder / "flags"), *flags(rng)]
        elif what == "prompts":
            (folder / "prompts").write_bytes(prompts(rng))
            given = [*common, "--prompt_file", str(folder / "prompts"), "--outdir",
                     str(folder / "made")]
        elif what == "record":
            damage(rng, folder / "record")
            given = record
        try:
            if what == "containers":
                containers(rng, folder)
                continue
            status, said = run(given)
            if not all(line.isprintable() for line in said.split("\n")):
                problems.append(f"case {i}: {given}: said {said!r}")
            if status not in (0, 1, 2) or (status and not said.strip()):
                problems.append(f"case {i}: {given}: status {status}, said {said!r}")
            if what == "record" and (status or contents(folder / "record") != whole):
                problems.append(f"case {i}: a damaged record was not made again: {said!r}")
        except Exception as error:
            problems.append(f"case {i}: {given}: {type(error).__name__}: {error}")
        if (seconds := time.process_time() - began) > SECONDS:
            problems.append(f"case {i}: {given}: computed {seconds:.0f} s")
    return problems + [f"{path} is left over" for path in folder.rglob(".*.part*")]


def main() -> int:
    from zerosmooth.checkpoint import save
    from zerosmooth.families import FAMILIES

    from .conftest import TINY_FAMILIES, tiny_pipeline

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    Pipeline.sample = grey  # type: ignore[method-assign, assignment]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "vc2.safetensors"
        tensors = tiny_pipeline("vc2").networks.state_dict().items()
        save(checkpoint, FAMILIES["vc2"], TINY_FAMILIES["vc2"], tensors, torch.float32, "a test",
             "0" * 64)
        problems = fuzz(checkpoint, Path(folder), args.cases, args.seed)
    print("\n".join(problems) or f"{args.cases} cases, no problem")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
