"""Throws mutated records, flags and prompts at sample.py: no traceback, no hang, no file that is cut under its name.

python -m tests.fuzz_runs --cases 400 --seed 0      # all in this process; sampling is replaced by grey frames
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
import sample  # noqa: E402
from zerosmooth.pipeline import Pipeline, Video  # noqa: E402
from zerosmooth.settings import Running, Settings, options  # noqa: E402

VALUES = [
    "",
    "0",
    "-1",
    "1",
    "2",
    "nan",
    "inf",
    "-inf",
    "1e39",
    "9" * 40,
    "9" * 250,
    "0.5",
    "x",
    "é\u2028",
    "true",
    "S",
]
JSON = [None, [], {}, 0, -1, 1e300, "", "x", True, [[]], {"files": None}, [None] * 3]
SECONDS = 20  # that no single case may take


def grey(pipeline, subjects, settings, *, seeds, running, progress, preview):
    frames = [settings.cascade.frames_of(stage) for stage in range(settings.cascade.stages)]
    pixels = [torch.full((n, settings.height, settings.width, 3), 128, dtype=torch.uint8) for n in frames]
    return [Video("", seeds, pixels, [8.0] * len(frames), [], settings, 0)]


def flags(rng: random.Random) -> list[str]:
    """Some flags with odd values, checked only: what they would make could be large."""
    given = []
    for option in rng.sample([*options(Settings), *options(Running)], rng.randint(1, 3)):
        name = {"frames": "key_frames"}.get(option.name, option.name)
        if option.kind is bool:
            given.append(f"--no_{name}" if option.default else f"--{name}")
        else:
            given.append(f"--{name}={rng.choice([*VALUES, *option.choices])}")
    for name in rng.sample(("scale", "seed", "num_videos", "save_fps", "image", "prompt"), rng.randint(0, 2)):
        given.append(f"--{name}={rng.choice(VALUES)}")
    return [*given, "--check"]


def prompts(rng: random.Random) -> bytes:
    text = "".join(rng.choice("ab #\n\r\x0c\x85\u2028\t\ufeff赤\U0001f600") for _ in range(rng.randint(0, 60)))
    content = bytearray(text.encode(rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"))))
    for _ in range(rng.choice((0, 0, 1, 4))):
        if content:
            content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


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
    common = ["--ckpt", str(checkpoint), "--scale", "1", "--steps", "25", "--gif", "--device", "cpu"]
    record = [*common, "--prompt", "a cat", "--outdir", str(folder / "record")]
    run(record)
    files = [
        path for path in (folder / "record").iterdir() if path.suffix not in (".json", ".html")
    ]  # which have times
    whole = {path.name: path.read_bytes() for path in files}
    for i in range(cases):
        began, what = time.perf_counter(), rng.choice(("flags", "prompts", "record"))
        if what == "flags":
            given = [*common, "--outdir", str(folder / "flags"), *flags(rng)]
        elif what == "prompts":
            (folder / "prompts").write_bytes(prompts(rng))
            given = [*common, "--prompt_file", str(folder / "prompts"), "--outdir", str(folder / "made")]
        else:
            damage(rng, folder / "record")
            given = record
        try:
            status, said = run(given)
            if status not in (0, 1, 2) or (status and not said.strip()):
                problems.append(f"case {i}: {given}: status {status}, said {said!r}")
            if what == "record" and (
                status or any((folder / "record" / n).read_bytes() != b for n, b in whole.items())
            ):
                problems.append(f"case {i}: a damaged record was not made again: {said!r}")
        except Exception as error:
            problems.append(f"case {i}: {given}: {type(error).__name__}: {error}")
        if (seconds := time.perf_counter() - began) > SECONDS:
            problems.append(f"case {i}: {given}: took {seconds:.0f} s")
    return problems + [f"{path} is left over" for path in folder.rglob(".*.part*")]


def main() -> int:
    from zerosmooth.checkpoint import save
    from zerosmooth.families import FAMILIES

    from .conftest import TINY_FAMILIES, tiny_pipeline

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    Pipeline.sample = grey  # type: ignore[method-assign, assignment]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "vc2.safetensors"
        tensors = tiny_pipeline("vc2").networks.state_dict().items()
        save(checkpoint, FAMILIES["vc2"], TINY_FAMILIES["vc2"], tensors, torch.float32, "a test", "0" * 64)
        problems = fuzz(checkpoint, Path(folder), args.cases, args.seed)
    print("\n".join(problems) or f"{args.cases} cases, no problem")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
